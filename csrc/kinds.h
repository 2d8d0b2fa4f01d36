#pragma once
#include <algorithm>
#include <vector>

#include "cpu/kernels.h"

namespace masked_swin {

// The kinds of windows: see PositionBias.
struct Kinds {
  std::vector<int32_t> kind, patterns;

  // In Swin only the windows at the end of a shifted axis hold several regions.
  explicit Kinds(const SwinBlock& a) {
    const int down = a.shift_height > 0, across = a.shift_width > 0;
    for (int i = 0; i <= down; i++)
      for (int j = 0; j <= across; j++)
        for (int y = 0; y < a.window_height; y++)
          for (int x = 0; x < a.window_width; x++)
            patterns.push_back((i && y >= a.window_height - a.shift_height) * 2 +
                               (j && x >= a.window_width - a.shift_width));
    for (int i = 1; i <= a.windows_down(); i++)
      for (int j = 1; j <= a.windows_across(); j++)
        kind.push_back((down && i == a.windows_down()) * (1 + across) + (across && j == a.windows_across()));
  }

  // Of any shift regions (windows, tokens).
  Kinds(const int32_t* regions, int64_t windows, int tokens) : kind(windows), patterns(tokens) {
    int count = 1;
    for (int64_t w = 0; w < windows; w++) {
      const int32_t* mine = regions + w * tokens;
      const bool mixed = !std::equal(mine + 1, mine + tokens, mine);
      int found = mixed ? 1 : 0;  // kind 0: a single region
      while (found && found < count && !std::equal(mine, mine + tokens, patterns.data() + found * tokens)) found++;
      if (found == count) {
        patterns.insert(patterns.end(), mine, mine + tokens);
        count++;
      }
      kind[w] = found;
    }
  }

  void describe(PositionBias& bias) const {
    bias.kinds = static_cast<int>(patterns.size()) / bias.keys;
    bias.patterns = patterns.data();
    bias.kind = kind.data();
    bias.pattern_windows = static_cast<int64_t>(kind.size());
  }
};

}  // namespace masked_swin
