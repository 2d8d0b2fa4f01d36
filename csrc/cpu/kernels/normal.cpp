// Normal numbers by Box and Muller's method: those of kernels/noise.py, up to rounding.
#include "philox.h"
#include "table.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

constexpr uint32_t LAST_HEAD = 0xFFFFFFFEu;  // of the first four channels; the next four have the head before

// Minimax polynomials with errors of at most 3e-8. The compiler vectorises the plain loops that call them.

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
INLINE void sincos(uint32_t word, float& sine, float& cosine) {
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
    float sine, cosine;
    sincos(of_turn[i], sine, cosine);
    first[i] = r * cosine;
    second[i] = r * sine;
  }
}

}  // namespace

void normal(const Normal& n, int64_t first, int64_t last) {
  for (int64_t image = first; image < last; image++)
    for (int64_t channel = 0; channel < n.channels; channel += 4) {
      const int64_t channels = n.channels - channel < 4 ? n.channels - channel : 4;
      float* const out = n.out + (image * n.channels + channel) * n.pixels;
      const uint32_t head = LAST_HEAD - (uint32_t)(channel / 4);
      each_block(0, n.pixels, n.key, image, head, [=](const Words& words, int64_t at, int64_t count) {
        float numbers[4][WORDS];
        pairs(words.c0, words.c1, numbers[0], numbers[1]);
        if (channels > 2) pairs(words.c2, words.c3, numbers[2], numbers[3]);
        for (int64_t c = 0; c < channels; c++)
          memcpy(out + c * n.pixels + at, numbers[c], (size_t)count * sizeof(float));
      });
    }
}

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
