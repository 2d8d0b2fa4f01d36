// Runs the kernels on threads of its own, without torch: for ThreadSanitizer, which cannot follow torch's pool, and for
// processors without an installed torch. MASKED_SWIN_CPU_ISA chooses the instruction set, as in the library.
//
//   threads                 checks that the results are the same bits on 1, 2 and 4 threads
//   threads --save FILE     and writes them to FILE
//   threads --compare FILE  and checks that they equal those of another build, up to rounding
//   threads --compare-narrow FILE  the same, but the cases in bf16 only up to its rounding: FILE has them in fp32
//   threads --plant-race    adds all chunks into the same sums: ThreadSanitizer must see it
//
// Exit code 0: all checks passed; 1: one failed.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <thread>

#include "cpu/mask_patterns.h"
#include "cpu/run.h"

namespace masked_swin {
namespace {

using Floats = std::vector<float>;

// Thread t takes the jobs t, t + count, ... Only its start and end order it with the others.
struct Threads {
  int count;
  template <class F>
  void operator()(int64_t jobs, const F& f) const {
    auto work = [&](int t) {
      for (int64_t i = t; i < jobs; i += count) f(i, i + 1);
    };
    std::vector<std::thread> others;
    for (int t = 1; t < count; t++) others.emplace_back(work, t);
    work(0);
    for (std::thread& other : others) other.join();
  }
};

struct Random {  // the same numbers with every compiler
  std::mt19937 bits{0};
  float one() { return static_cast<float>(bits() >> 8) * 0x1p-23f - 1.0f; }
  Floats vector(size_t size, float magnitude = 1.0f, float mean = 0.0f) {
    Floats v(size);
    for (float& x : v) x = mean + magnitude * one();
    return v;
  }
};

struct Geometry {
  int64_t batch;
  int height, width, window_height, window_width, shift_height, shift_width;
  int tokens() const { return window_height * window_width; }
  int windows() const { return height / window_height * (width / window_width); }  // of one image

  // (windows, tokens): the part of the unshifted image that a token comes from
  std::vector<int32_t> regions() const {
    auto part = [](int at, int size, int window, int shift) {
      return at < size - window ? 0 : at < size - shift ? 1 : 2;
    };
    std::vector<int32_t> result;
    for (int w = 0; w < windows(); w++)
      for (int t = 0; t < tokens(); t++) {
        const int across = width / window_width;
        const int y = w / across * window_height + t / window_width, x = w % across * window_width + t % window_width;
        result.push_back(3 * part(y, height, window_height, shift_height) + part(x, width, window_width, shift_width));
      }
    return result;
  }
};

// The tensors that one call writes, NaN until it does.
struct Written {
  std::vector<Floats> tensors;
  float* add(size_t size) { return tensors.emplace_back(size, std::numeric_limits<float>::quiet_NaN()).data(); }
};

template <class Problem>
void run(const Problem& a, const Steps<Problem>& steps, int64_t windows, bool backward, int threads) {
  Run run(a, steps, windows, Threads{threads});
  if (!(backward ? run.backward() : run.forward())) throw std::bad_alloc();
}

struct BlockCase {
  const char* name;
  Geometry at;
  int channels, heads, hidden;
  MaskMode mode;
  float keep;  // share of visible tokens; 1: no mask
  bool bf16;

  // y, then the gradients
  std::vector<Floats> results(const Kernels& kernels, int threads) const {
    Random random;
    const size_t C = channels, M = hidden, pixels = at.batch * at.height * at.width;
    const size_t table = (2 * at.window_height - 1) * (2 * at.window_width - 1) * heads;
    const Floats x = random.vector(pixels * C), grad = random.vector(pixels * C),
                 drop_path = random.vector(2 * at.batch);
    const float c = 1 / sqrtf(C), m = 1 / sqrtf(M);
    SwinBlock a{};
    std::vector<Floats> weights;
    auto weight = [&](size_t size, float magnitude = 1.0f, float mean = 0.0f) {
      return weights.emplace_back(random.vector(size, magnitude, mean)).data();
    };
    a.weights = {
        .norm1_weight = weight(C, 0.3f, 1),
        .norm1_bias = weight(C),
        .qkv_weight = weight(3 * C * C, c),
        .qkv_bias = weight(3 * C),
        .position_bias_table = weight(table),
        .proj_weight = weight(C * C, c),
        .proj_bias = weight(C),
        .norm2_weight = weight(C, 0.3f, 1),
        .norm2_bias = weight(C),
        .fc1_weight = weight(M * C, c),
        .fc1_bias = weight(M),
        .fc2_weight = weight(C * M, m),
        .fc2_bias = weight(C),
    };
    const Floats mask_token = random.vector(C);
    std::vector<unsigned char> visible;
    for (size_t i = 0; i < pixels; i++) visible.push_back(random.one() * 0.5f + 0.5f < keep);

    a.batch = at.batch, a.height = at.height, a.width = at.width;
    a.channels = channels, a.hidden = hidden, a.head_dim = channels / heads;
    a.window_height = at.window_height, a.window_width = at.window_width;
    a.shift_height = at.shift_height, a.shift_width = at.shift_width;
    a.mode = mode;
    a.bf16 = bf16;
    a.keep = keep < 1 ? reinterpret_cast<const bool*>(visible.data()) : nullptr;
    a.bias.heads = heads;
    a.bias.queries = a.bias.keys = at.tokens();
    a.bias.bias = a.weights.position_bias_table;
    a.bias.table_height = at.window_height, a.bias.table_width = at.window_width;
    a.bias.shared_key = a.keep && mode < MaskMode::drop;
    a.bias.penalty = a.keep && !a.bias.shared_key ? EXCLUDED : SHIFT_PENALTY;
    const MaskPatterns patterns(a);
    patterns.describe(a.bias);
    if (mode == MaskMode::token) a.mask_token = mask_token.data();
    a.drop_path_scale = drop_path.data();
    a.x = x.data();

    Written out;
    a.out = out.add(pixels * C);
    run(a, kernels.swin_block, a.windows(), false, threads);
    Written grads;
    a.out = grads.add(pixels * C);
    a.grad_out = grad.data();
    a.grads = BlockWeights<float*>::make([&](int i) { return grads.add(weights[i].size()); });
    if (mode == MaskMode::token) a.grad_mask_token = grads.add(C);
    run(a, kernels.swin_block, a.windows(), true, threads);
    out.tensors.insert(out.tensors.end(), grads.tensors.begin(), grads.tensors.end());
    return out.tensors;
  }
};

struct AttentionCase {
  const char* name;
  Geometry at;
  int heads, head_dim;
  bool compact_queries, compact_keys, shared, window_mask;

  // The output, then the gradients of q, k, v, bias and shared_qkv.
  std::vector<Floats> results(const Kernels& kernels, int threads) const {
    Random random;
    const size_t N = at.tokens(), row = heads * head_dim, windows = at.windows() * at.batch, all = windows * N;
    const MaskPatterns patterns(at.regions().data(), at.windows(), at.tokens());
    std::vector<int32_t> offsets{0}, position;
    for (size_t w = 0; w < windows; w++) {
      for (size_t t = 0; t < N; t++)
        if (random.one() > 0.3f && w != 1) position.push_back(static_cast<int32_t>(t));  // window 1 sees nothing
      offsets.push_back(static_cast<int32_t>(position.size()));
    }
    const size_t queries = compact_queries ? position.size() : all, keys = compact_keys ? position.size() : all;
    const size_t outputs = compact_queries && !shared ? queries : all;
    Floats q = random.vector(queries * row), k = random.vector(keys * row), v = random.vector(keys * row);
    Floats bias = random.vector(heads * N * N), shared_qkv = random.vector(3 * row), mask = random.vector(3 * N * N);
    Floats grad = random.vector(outputs * row);
    const int64_t stride = row;

    WindowAttention a{};
    a.windows = windows;
    a.head_dim = head_dim;
    a.scale = 0.4f;
    a.bias.heads = heads;
    a.bias.queries = a.bias.keys = at.tokens();
    a.bias.bias = bias.data();
    a.bias.shared_key = shared;
    a.bias.penalty = shared || !compact_keys ? SHIFT_PENALTY : EXCLUDED;
    patterns.describe(a.bias);
    a.q = {q.data(), stride, compact_queries};
    a.k = {k.data(), stride, compact_keys};
    a.v = {v.data(), stride, compact_keys};
    a.shared_qkv = shared ? shared_qkv.data() : nullptr;
    a.offsets = compact_keys ? offsets.data() : nullptr;
    a.position = compact_keys ? position.data() : nullptr;
    a.window_mask = window_mask ? mask.data() : nullptr;
    a.mask_windows = 3;

    Written out;
    a.out = {out.add(outputs * row), stride, compact_queries && !shared};
    run(a, kernels.window_attention, a.windows, false, threads);
    Written grads;
    a.grad_out = {grad.data(), stride, a.out.compact};
    a.grad_q = {grads.add(q.size()), stride, compact_queries};
    a.grad_k = {grads.add(k.size()), stride, compact_keys};
    a.grad_v = {grads.add(v.size()), stride, compact_keys};
    a.grad_bias = grads.add(bias.size());
    if (shared) a.grad_shared_qkv = grads.add(shared_qkv.size());
    run(a, kernels.window_attention, a.windows, true, threads);
    out.tensors.insert(out.tensors.end(), grads.tensors.begin(), grads.tensors.end());
    return out.tensors;
  }
};

// 32 windows at least: a chunk, a thread's unit of work, holds 16 or more of them.
const BlockCase BLOCKS[] = {
    {"published size, 25 % visible", {1, 64, 64, 8, 8, 4, 4}, 60, 6, 120, MaskMode::zero, 0.25f, false},
    {"bf16", {1, 48, 64, 8, 8, 4, 4}, 60, 6, 120, MaskMode::zero, 0.25f, true},
    {"dense bf16", {1, 48, 64, 8, 8, 0, 4}, 36, 3, 72, MaskMode::zero, 1.0f, true},
    {"dense", {1, 48, 64, 8, 8, 4, 4}, 30, 3, 60, MaskMode::zero, 1.0f, false},
    {"rectangle, mask token", {2, 18, 30, 3, 5, 1, 2}, 14, 2, 42, MaskMode::token, 0.5f, false},
    {"keys dropped", {3, 32, 24, 4, 6, 0, 3}, 20, 2, 20, MaskMode::drop, 0.3f, false},
    {"visible tokens alone", {2, 32, 48, 8, 6, 4, 1}, 28, 2, 42, MaskMode::visible, 0.25f, false},
    {"visible tokens alone, bf16", {2, 32, 32, 8, 4, 0, 2}, 60, 6, 120, MaskMode::visible, 0.05f, true},
};
const AttentionCase ATTENTIONS[] = {
    {"dense, window mask", {3, 32, 32, 8, 8, 4, 4}, 2, 10, false, false, false, true},
    {"masked tokens share q, k, v", {2, 48, 40, 8, 8, 4, 4}, 6, 10, true, true, true, false},
    {"visible tokens alone", {2, 24, 40, 4, 5, 2, 0}, 3, 7, true, true, false, false},
    {"all queries, visible keys", {2, 24, 40, 4, 5, 0, 0}, 3, 32, false, true, false, false},
};

Kernels with_planted_race(const Kernels& kernels) {
  static const auto real = kernels.swin_block.backward;
  static Floats sums;
  Kernels planted = kernels;
  planted.swin_block.backward = [](const SwinBlock& a, const float* prepared, float* own, int64_t first, int64_t last) {
    return real(a, prepared, sums.empty() ? own : sums.data(), first, last);
  };
  sums.resize(1 << 20);
  return planted;
}

double relative_error(const Floats& value, const Floats& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < value.size(); i++) {
    difference += pow(double(value[i]) - expected[i], 2);
    norm += pow(double(expected[i]), 2);
  }
  return norm > 0 ? sqrt(difference / norm) : difference > 0;
}

int check(const std::string& option, const char* file) {
  constexpr double ROUNDING = 1e-5;         // of sums in fp32, as a share of the tensor's norm
  constexpr double NARROW_ROUNDING = 0.02;  // of operands in bf16
  const Kernels& real = masked_swin::kernels();
  const Kernels kernels = option == "--plant-race" ? with_planted_race(real) : real;
  std::ofstream save(option == "--save" ? file : "", std::ios::binary);
  const bool compared = option.rfind("--compare", 0) == 0;
  std::ifstream other(compared ? file : "", std::ios::binary);
  int wrong = 0, tensors = 0;
  double largest = 0, narrowest = 0;  // differences in fp32 and bf16
  auto check_case = [&](const auto& what, bool bf16) {
    const double allowed = bf16 && option == "--compare-narrow" ? NARROW_ROUNDING : ROUNDING;
    const std::vector<Floats> expected = what.results(kernels, 1);
    for (int threads : {2, 4}) {
      const std::vector<Floats> found = what.results(kernels, threads);
      for (size_t i = 0; i < found.size(); i++)
        if (memcmp(found[i].data(), expected[i].data(), found[i].size() * sizeof(float))) {
          printf("%s: tensor %zu differs between 1 and %d threads\n", what.name, i, threads);
          wrong++;
        }
    }
    for (size_t i = 0; i < expected.size(); i++, tensors++) {
      const Floats& values = expected[i];
      const std::streamsize bytes = values.size() * sizeof(float);
      bool finite = true;
      for (float value : values) finite = finite && isfinite(value);
      if (save.is_open()) save.write(reinterpret_cast<const char*>(values.data()), bytes);
      double error = 0;
      if (compared) {
        Floats theirs(values.size());
        error = other.read(reinterpret_cast<char*>(theirs.data()), bytes) ? relative_error(values, theirs) : INFINITY;
        if (!bf16)
          largest = fmax(largest, error);
        else
          narrowest = fmax(narrowest, error);
      }
      if (finite && error <= allowed) continue;  // not so if it is NaN
      if (!finite) printf("%s: tensor %zu is not finite\n", what.name, i);
      if (error > allowed) printf("%s: tensor %zu differs from the other build by %.1e\n", what.name, i, error);
      wrong++;
    }
  };
  for (const BlockCase& block : BLOCKS) check_case(block, block.bf16);
  for (const AttentionCase& attention : ATTENTIONS) check_case(attention, false);
  printf("%s: %d tensors, %s", real.name, tensors, wrong ? "WRONG" : "the same bits on 1, 2 and 4 threads");
  if (compared) printf("; largest relative difference %.1e, cases in bf16 %.1e", largest, narrowest);
  printf("\n");
  return wrong > 0 || (option == "--save" && !save.flush());
}

}  // namespace
}  // namespace masked_swin

int main(int count, char** arguments) {
  const std::string option = count > 1 ? arguments[1] : "";
  const bool with_file = option == "--save" || option == "--compare" || option == "--compare-narrow";
  if (count != (with_file ? 3 : option == "--plant-race" ? 2 : 1)) {
    fprintf(stderr, "usage: threads [--save FILE | --compare FILE | --plant-race]\n");
    return 1;
  }
  return masked_swin::check(option, with_file ? arguments[2] : nullptr);
}
