// A 3x3 convolution of images with adjacent channels, a row of pixels at a time.
//
// Three neighbouring pixels of a row are contiguous, 3 * stride floats. A row of the output is therefore the sum of
// three products, one for each input row; their operand is the input row, read at every pixel. Input rows are copied to
// ImageRows, which adds a zero pixel on either side and pads channels with zeros to `stride`.
#include "product.h"
#include "scratch.h"
#include "table.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

typedef Convolution Problem;

constexpr int TAPS = 3;
int stride_of(int channels) { return (channels + 3) / 4 * 4; }

// Weights as the right operand: [tap down][tap across * stride(from) + channel][round_up(to)]
size_t packed_size(int from, int to) { return (size_t)TAPS * TAPS * stride_of(from) * round_up(to); }

// The three rows around the current one, of images with `channels`.
struct ImageRows {
  const Problem& a;
  const float* image;
  const int channels, stride;
  int64_t held[TAPS] = {-1, -1, -1};  // the row in each slot; OUTSIDE: zeros
  float* slots;
  static constexpr int64_t OUTSIDE = -2;

  ImageRows(const Problem& problem, const float* first, int channels_)
      : a(problem), image(first), channels(channels_), stride(stride_of(channels_)) {}

  size_t pitch() const { return (size_t)(a.width + 2) * stride; }
  void lay_out(Scratch& s) { s.take(TAPS * pitch() + LANES, slots); }  // loads run past the last channel

  // The row `down` - 1 below `row`, from the zero pixel on its left.
  const float* at(int64_t row, int down) {
    const int64_t y = row % a.height + down - 1;
    const bool inside = y >= 0 && y < a.height;
    const int64_t requested = inside ? row + down - 1 : OUTSIDE;
    const int slot = (row + down) % TAPS;
    float* to = slots + pitch() * slot;
    if (held[slot] != requested) {
      held[slot] = requested;
      memset(to, 0, sizeof(float) * pitch());
      for (int p = 0; inside && p < a.width; p++)
        memcpy(to + (size_t)(p + 1) * stride, image + (requested * a.width + p) * channels, sizeof(float) * channels);
    }
    return to;
  }
};

// Computes a row of the output: with padding in `sums`, without in `to`.
void convolve(ImageRows& from, int64_t row, int to_channels, const float* packed, const float* bias, float* sums,
              float* to) {
  const int depth = TAPS * from.stride, wide = round_up(to_channels), width = from.a.width;
  for (int down = 0; down < TAPS; down++) {
    product<Fp32>(width, wide, depth, {from.at(row, down), from.stride, 1}, packed + (size_t)down * depth * wide, wide,
                  [=](int p, int n, Vec v) INLINE_LAMBDA {
                    float* sum = sums + (size_t)p * wide + n;
                    store(sum, (down ? load(sum) : load(bias + n)) + v);
                  });
  }
  for (int p = 0; p < width; p++)
    memcpy(to + (row * width + p) * to_channels, sums + (size_t)p * wide, sizeof(float) * to_channels);
}

// The backward convolves the gradient, from the output's channels to the input's, with weights rotated by 180 degrees.
struct Prepared {
  const int from, to;
  float *bias, *packed;
  const size_t size;
  Prepared(const Problem& a, const float* memory)
      : from(a.grad_y ? a.out : a.in),
        to(a.grad_y ? a.in : a.out),
        bias(const_cast<float*>(memory)),
        packed(bias + round_up(to)),
        size(round_up(to) + packed_size(from, to)) {}
};

size_t prepared_size(const Problem& a) { return Prepared(a, nullptr).size; }
// Sums for the weights, packed as in the forward, then for the bias.
size_t sums_size(const Problem& a) { return packed_size(a.in, a.out) + round_up(a.out); }
int jobs(const Problem&) { return 1; }

void prepare(const Problem& a, float* memory, int) {
  const Prepared p(a, memory);
  memset(p.bias, 0, sizeof(float) * p.size);
  if (!a.grad_y) memcpy(p.bias, a.bias, sizeof(float) * a.out);
  for (int k = 0; k < p.from; k++)
    for (int n = 0; n < p.to; n++)
      for (int tap = 0; tap < TAPS * TAPS; tap++) {
        const int in = a.grad_y ? n : k, out = a.grad_y ? k : n, at = a.grad_y ? TAPS * TAPS - 1 - tap : tap;
        p.packed[((size_t)tap * stride_of(p.from) + k) * round_up(p.to) + n] =
            a.weight[((size_t)out * a.in + in) * TAPS * TAPS + at];
      }
}

bool forward(const Problem& a, const float* prepared, int64_t first, int64_t last) {
  const Prepared p(a, prepared);
  ImageRows x(a, a.x, a.in);
  float* sums;
  Scratch scratch([&](Scratch& s) {
    x.lay_out(s);
    s.take((size_t)a.width * round_up(a.out), sums);
  });
  if (!scratch.ok()) return false;
  for (int64_t row = first; row < last; row++) convolve(x, row, a.out, p.packed, p.bias, sums, a.y);
  return true;
}

bool backward(const Problem& a, const float* prepared, float* total, int64_t first, int64_t last) {
  const Prepared p(a, prepared);
  ImageRows x(a, a.x, a.in), g(a, a.grad_y, a.out);
  const int wide = round_up(a.out), height = TAPS * x.stride;
  float *sums, *const d_bias = total + packed_size(a.in, a.out);
  Scratch scratch([&](Scratch& s) {
    x.lay_out(s);
    g.lay_out(s);
    s.take((size_t)a.width * round_up(a.in), sums);
  });
  if (!scratch.ok()) return false;
  for (int64_t row = first; row < last; row++) {
    convolve(g, row, a.in, p.packed, p.bias, sums, a.grad_x);
    const float* const d_out = g.at(row, 1) + g.stride;
    for (int down = 0; down < TAPS; down++)
      token_sum<Fp32>(height, wide, a.width, {x.at(row, down), 1, x.stride}, d_out, g.stride, 1.0f, true,
                      total + (size_t)down * height * wide, wide);
    for (int n = 0; n < wide; n += LANES) {
      Vec sum = {};
      for (int i = 0; i < a.width; i++) sum += load(d_out + (size_t)i * g.stride + n);
      store(d_bias + n, load(d_bias + n) + sum);
    }
  }
  return true;
}

void finish(const Problem& a, const float*, float* total, int) {
  for (int out = 0; out < a.out; out++)
    for (int in = 0; in < a.in; in++)
      for (int tap = 0; tap < TAPS * TAPS; tap++)
        a.grad_weight[((size_t)out * a.in + in) * TAPS * TAPS + tap] =
            total[((size_t)tap * stride_of(a.in) + in) * round_up(a.out) + out];
  memcpy(a.grad_bias, total + packed_size(a.in, a.out), sizeof(float) * a.out);
}

}  // namespace

extern const Steps<Convolution> convolution_steps = {prepared_size, sums_size, jobs,     jobs,
                                                     prepare,       forward,   backward, finish};

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
