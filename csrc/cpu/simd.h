// Vectors of fp32, one product and one transposition: all that the CPU kernels are written in.
//
// Every CPU source is compiled once per instruction set (setup.py) with MASKED_SWIN_ISA naming it. GCC/Clang vector types make
// one source serve all of them. Such a file includes C headers only and keeps everything in the namespace of its instruction
// set: an inline function of the C++ library, compiled here for AVX-512 and merged by the linker, would crash older machines.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define MASKED_SWIN_LANES 16
#elif defined(__AVX__)
#define MASKED_SWIN_LANES 8
#else
#define MASKED_SWIN_LANES 4
#endif
#define INLINE inline __attribute__((always_inline))

namespace masked_swin {
namespace MASKED_SWIN_ISA {

constexpr int LANES = MASKED_SWIN_LANES;
// 32 registers: 24 accumulators leave room for 4 loads. 16 registers: 12 leave room for 2.
constexpr int ACCUMULATORS = LANES == 16 ? 24 : 12;
constexpr int VECTORS = LANES == 16 ? 4 : 2;  // of one product block

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t VecInt __attribute__((vector_size(LANES * 4)));
typedef float VecUnaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

INLINE Vec load(const float* p) { return *reinterpret_cast<const VecUnaligned*>(p); }
INLINE void store(float* p, Vec v) { *reinterpret_cast<VecUnaligned*>(p) = v; }
INLINE Vec splat(float a) { return a - Vec{}; }
INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }  // b if either is NaN
inline int round_up(int n) { return (n + LANES - 1) / LANES * LANES; }

// e^x with relative error 2e-7; exactly 0 below -87, where fp32 has no normal number left; NaN stays NaN. x must not exceed 88.
INLINE Vec exp(Vec x) {
  const Vec shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec t = max(splat(-87.0f), x) * 1.44269504f;
  const Vec n = (t + shifter) - shifter;
  const Vec r = t - n;
  // 2^r on [-0.5, 0.5]: minimax polynomial of degree 6
  Vec p = splat(1.5353362e-4f);
  p = p * r + 1.3398874e-3f;
  p = p * r + 9.6184373e-3f;
  p = p * r + 5.5503324e-2f;
  p = p * r + 2.4022648e-1f;
  p = p * r + 6.9314720e-1f;
  p = p * r + 1.0f;
  const VecInt exponent = __builtin_convertvector(n, VecInt) + 127;
  const Vec power = reinterpret_cast<Vec>(exponent << 23);
  return x < -87.0f ? Vec{} : p * power;
}

template <int... I>
struct Sequence {};
template <int N, int... I>
struct MakeSequence : MakeSequence<N - 1, N - 1, I...> {};
template <int... I>
struct MakeSequence<0, I...> {
  typedef Sequence<I...> type;
};
typedef MakeSequence<LANES>::type Lanes;

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define MASKED_SWIN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef MASKED_SWIN_SHUFFLE  // GCC before 12
#define MASKED_SWIN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, VecInt{__VA_ARGS__})
#endif

// One step of a transposition: swap the off-diagonal S x S blocks of rows a and b.
template <int S, int... I>
INLINE void exchange(Vec& a, Vec& b, Sequence<I...>) {
  const Vec low = MASKED_SWIN_SHUFFLE(a, b, ((I & S) ? LANES + I - S : I)...);
  b = MASKED_SWIN_SHUFFLE(a, b, ((I & S) ? LANES + I : I + S)...);
  a = low;
}

template <int S>
INLINE void exchange_all(Vec (&r)[LANES]) {
  if constexpr (S < LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if (!(i & S)) exchange<S>(r[i], r[i + S], Lanes());
    exchange_all<2 * S>(r);
  }
}

INLINE void transpose(Vec (&r)[LANES]) { exchange_all<1>(r); }

INLINE Vec load_partial(const float* p, int count) {
  Vec v = {};
  memcpy(&v, p, sizeof(float) * count);
  return v;
}

// out[c][i] = rows[i][c] for c < columns, i < count; columns of `out` up to round_up(count) are 0.
static void gather_transposed(const float* const* rows, int count, int columns, float* out, int out_stride) {
  for (int i = 0; i < count; i += LANES)
    for (int c = 0; c < columns; c += LANES) {
      Vec r[LANES];
      const int wide = columns - c < LANES ? columns - c : LANES;
      for (int k = 0; k < LANES; k++)
        r[k] = i + k >= count ? Vec{} : wide == LANES ? load(rows[i + k] + c) : load_partial(rows[i + k] + c, wide);
      transpose(r);
      for (int k = 0; k < wide; k++) store(out + (size_t)(c + k) * out_stride + i, r[k]);
    }
}

// rows[i][c] = in[c][i] for c < columns, i < count. Reads `in` up to column round_up(count).
static void scatter_transposed(const float* in, int in_stride, int count, int columns, float* const* rows) {
  for (int i = 0; i < count; i += LANES)
    for (int c = 0; c < columns; c += LANES) {
      Vec r[LANES];
      const int wide = columns - c < LANES ? columns - c : LANES;
      for (int k = 0; k < LANES; k++) r[k] = k < wide ? load(in + (size_t)(c + k) * in_stride + i) : Vec{};
      transpose(r);
      for (int k = 0; k < LANES && i + k < count; k++) {
        if (wide == LANES)
          store(rows[i + k] + c, r[k]);
        else
          memcpy(rows[i + k] + c, &r[k], sizeof(float) * wide);
      }
    }
}

struct Operand {  // element (row, k) at p[row * row_stride + k * k_stride]
  const float* p;
  int row_stride, k_stride;
};

// ROWS x NV vectors of c = sum_k broadcast(a) * vector(b). Sums run over at most BLOCK_DEPTH terms before they are added to the
// total: the rounding error of a long sum is several times smaller, for nothing.
constexpr int BLOCK_DEPTH = 64;
template <int ROWS, int NV>
static void product_block(int depth, Operand a, const float* __restrict b, int b_stride, float* c, int c_stride) {
  int k = 0;
  do {
    const int end = depth - k > BLOCK_DEPTH ? k + BLOCK_DEPTH : depth;
    const bool first = k == 0;
    Vec sum[ROWS][NV] = {};
    for (; k < end; k++) {
      Vec x[NV];
#pragma GCC unroll 4
      for (int l = 0; l < NV; l++) x[l] = load(b + (size_t)k * b_stride + l * LANES);
#pragma GCC unroll 24
      for (int i = 0; i < ROWS; i++) {
        const Vec w = splat(a.p[(size_t)i * a.row_stride + (size_t)k * a.k_stride]);
#pragma GCC unroll 4
        for (int l = 0; l < NV; l++) sum[i][l] += w * x[l];
      }
    }
#pragma GCC unroll 24
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
      for (int l = 0; l < NV; l++) {
        float* to = c + (size_t)i * c_stride + l * LANES;
        store(to, first ? sum[i][l] : load(to) + sum[i][l]);
      }
  } while (k < depth);
}

template <int ROWS, int NV>
static void product_rows(int rows, int depth, Operand a, const float* b, int b_stride, float* c, int c_stride) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS)
      product_block<ROWS, NV>(depth, a, b, b_stride, c, c_stride);
    else
      product_rows<ROWS - 1, NV>(rows, depth, a, b, b_stride, c, c_stride);
  }
}

template <int NV>
static void product_columns(int rows, int depth, Operand a, const float* b, int b_stride, float* c, int c_stride) {
  constexpr int MOST = ACCUMULATORS / NV < 14 ? ACCUMULATORS / NV : 14;
  const int blocks = (rows + MOST - 1) / MOST;  // of nearly equal height: no thin last block
  for (int block = 0, done = 0; block < blocks; block++) {
    const int height = (rows - done) / (blocks - block);
    product_rows<MOST, NV>(height, depth, a, b, b_stride, c + (size_t)done * c_stride, c_stride);
    a.p += (size_t)height * a.row_stride;
    done += height;
  }
}

// c[i][0 .. width) = sum_{k < depth} a(i, k) * b[k][0 .. width), i < rows; b and c are read and written up to round_up(width).
static void product(int rows, int width, int depth, Operand a, const float* b, int b_stride, float* c, int c_stride) {
  int left = round_up(width) / LANES;
  for (; left >= VECTORS; left -= VECTORS, b += VECTORS * LANES, c += VECTORS * LANES)
    product_columns<VECTORS>(rows, depth, a, b, b_stride, c, c_stride);
  if (left == 3) product_columns<3>(rows, depth, a, b, b_stride, c, c_stride);
  if (left == 2) product_columns<2>(rows, depth, a, b, b_stride, c, c_stride);
  if (left == 1) product_columns<1>(rows, depth, a, b, b_stride, c, c_stride);
}

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
