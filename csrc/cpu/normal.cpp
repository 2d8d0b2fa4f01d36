// Normal numbers from the words of philox.h by Box and Muller's method: kernels/noise.py says which.
#include "kernels.h"
#include "philox.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

// Minimax polynomials, errors of 3e-8 and less. Plain loops call them, which the compiler vectorises.

// (-2 ln(uniform))^0.5, uniform = ((word >> 8) + 1) / 2^24
INLINE float radius(uint32_t word) {
  const float whole = (float)(int32_t)((word >> 8) + 1);
  int32_t bits;
  memcpy(&bits, &whole, sizeof bits);
  const int32_t exponent = (bits - 0x3F3504F3) >> 23;  // uniform = m * 2^(exponent - 24), m from 0.5^0.5 to 2^0.5
  bits -= exponent * (1 << 23);
  float m;
  memcpy(&m, &bits, sizeof m);
  const float z = m - 1.0f;
  float p = 8.91786938e-02f;
  p = p * z - 1.43502014e-01f;
  p = p * z + 1.48769612e-01f;
  p = p * z - 1.65656345e-01f;
  p = p * z + 1.99653981e-01f;
  p = p * z - 2.50017469e-01f;
  p = p * z + 3.33338581e-01f;
  const float logarithm = (float)(exponent - 24) * 0.693147182f + (z + z * z * (p * z - 0.5f));
  return __builtin_sqrtf(-2.0f * logarithm);
}

// Cosine and sine of (word >> 8) / 2^24 turns.
INLINE void turned(uint32_t word, float& cosine, float& sine) {
  const int32_t turn = (int32_t)(word >> 8), quarter = (turn + (1 << 21)) >> 22;
  const float t = (float)(turn - quarter * (1 << 22)) * 0x1p-24f, t2 = t * t;  // from -1/8 to 1/8
  float s = -7.54020679e+01f;
  s = s * t2 + 8.15925535e+01f;
  s = s * t2 - 4.13416626e+01f;
  s = (s * t2 + 6.28318529e+00f) * t;
  float c = 5.92204066e+01f;
  c = c * t2 - 8.54428521e+01f;
  c = c * t2 + 6.49393162e+01f;
  c = c * t2 - 1.97392087e+01f;
  c = c * t2 + 1.0f;
  const float x = quarter & 1 ? s : c, y = quarter & 1 ? c : s;
  cosine = (quarter + 1) & 2 ? -x : x;
  sine = quarter & 2 ? -y : y;
}

INLINE void pairs(const uint32_t* of_radius, const uint32_t* of_turn, float* first, float* second) {
  for (int i = 0; i < WORDS; i++) {
    const float r = radius(of_radius[i]);
    float cosine, sine;
    turned(of_turn[i], cosine, sine);
    first[i] = r * cosine;
    second[i] = r * sine;
  }
}

}  // namespace

void normal(const Normal& n, int64_t first, int64_t last) {
  for (int64_t image = first; image < last; image++)
    for (int64_t group = 0; 4 * group < n.channels; group++)
      for (int64_t pixel = 0; pixel < n.pixels; pixel += WORDS) {
        const Words words((uint32_t)pixel, (uint32_t)n.sample[image], n.draw, RESERVED - 1 - (uint32_t)group, n.seed);
        float numbers[4][WORDS];
        pairs(words.c0, words.c1, numbers[0], numbers[1]);
        if (4 * group + 2 < n.channels) pairs(words.c2, words.c3, numbers[2], numbers[3]);
        const int64_t count = n.pixels - pixel < WORDS ? n.pixels - pixel : WORDS;
        for (int64_t channel = 4 * group; channel < n.channels && channel < 4 * group + 4; channel++)
          memcpy(n.out + (image * n.channels + channel) * n.pixels + pixel, numbers[channel % 4],
                 (size_t)count * sizeof(float));
      }
}

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
