// The mask patterns of windows: see PositionBias.
#pragma once
#include <algorithm>
#include <vector>

#include "problem.h"

namespace masked_swin {

struct MaskPatterns {
  std::vector<int32_t> mask_pattern, patterns;

  // Only the windows at the end of a shifted axis hold several regions.
  explicit MaskPatterns(const SwinBlock& a) {
    const int down = a.shift_height > 0, across = a.shift_width > 0;
    for (int i = 0; i <= down; i++)
      for (int j = 0; j <= across; j++)
        for (int y = 0; y < a.window_height; y++)
          for (int x = 0; x < a.window_width; x++)
            patterns.push_back((i && y >= a.window_height - a.shift_height) * 2 +
                               (j && x >= a.window_width - a.shift_width));
    for (int i = 1; i <= a.windows_down(); i++)
      for (int j = 1; j <= a.windows_across(); j++)
        mask_pattern.push_back((down && i == a.windows_down()) * (1 + across) + (across && j == a.windows_across()));
  }

  // Finds the patterns of any shift regions (windows, tokens).
  MaskPatterns(const int32_t* regions, int64_t windows, int tokens) : mask_pattern(windows), patterns(tokens) {
    int count = 1;
    for (int64_t w = 0; w < windows; w++) {
      const int32_t* window = regions + w * tokens;
      const bool mixed = !std::equal(window + 1, window + tokens, window);
      int found = mixed ? 1 : 0;  // pattern 0: a single region
      while (found && found < count && !std::equal(window, window + tokens, patterns.data() + found * tokens)) found++;
      if (found == count) {
        patterns.insert(patterns.end(), window, window + tokens);
        count++;
      }
      mask_pattern[w] = found;
    }
  }

  // Points `bias` to these patterns, which must outlive it.
  void describe(PositionBias& bias) const {
    bias.pattern_count = static_cast<int>(patterns.size()) / bias.keys;
    bias.patterns = patterns.data();
    bias.mask_pattern = mask_pattern.data();
    bias.pattern_windows = static_cast<int64_t>(mask_pattern.size());
  }
};

}  // namespace masked_swin
