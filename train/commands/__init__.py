"""The commands of `masked-swin`, one file each."""
