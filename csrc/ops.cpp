// Registers the CPU kernels with PyTorch through its stable ABI: one binary for every torch >= 2.10. Schemas, fakes and
// gradients are in kernels/ops.py; shapes and dtypes were checked there, and are checked again here where memory is at stake.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"

namespace masked_swin {

namespace portable {
extern const Kernels kernels;
}
#ifdef MASKED_SWIN_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

const Kernels& best_kernels() {
  const char* wanted = std::getenv("MASKED_SWIN_CPU_ISA");
  auto allowed = [&](const char* name) { return !wanted || !std::strcmp(wanted, name); };
#ifdef MASKED_SWIN_X86
  __builtin_cpu_init();
  if (allowed("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return avx512::kernels;
  if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kernels;
#else
  (void)allowed;
#endif
  return portable::kernels;
}

const Kernels& kernels() {
  static const Kernels& chosen = best_kernels();
  return chosen;
}

void check_tensor(const Tensor& t, const char* name, ScalarType type) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == type, "masked_swin: ", name, " has the wrong device or dtype");
}

// The tensor with rows of adjacent (heads, head_dim) and one stride between rows, copied if it has another layout.
Tensor with_rows(const Tensor& t) {
  const int64_t n = t.dim();
  const bool dense = t.stride(n - 1) == 1 && t.stride(n - 2) == t.size(n - 1) &&
                     (n == 3 || t.stride(0) == t.stride(1) * t.size(1));
  return dense ? t : torch::stable::contiguous(t);
}

Rows rows_of(const Tensor& t) {
  return {static_cast<float*>(t.data_ptr()), t.stride(t.dim() - 3), t.dim() == 3};
}

template <class T>
const T* pointer(const MaybeTensor& t) {
  return t ? static_cast<const T*>(t->data_ptr()) : nullptr;
}

MaybeTensor checked(const MaybeTensor& t, const char* name, ScalarType type) {
  if (!t) return t;
  check_tensor(*t, name, type);
  return torch::stable::contiguous(*t);
}

// Keeps contiguous copies alive as long as the pointers into them.
struct Call {
  Tensor q, k, v, bias;
  MaybeTensor masked, offsets, position, regions, window_mask;
  WindowAttention a{};

  Call(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& bias_, const MaybeTensor& masked_,
       const MaybeTensor& offsets_, const MaybeTensor& position_, const MaybeTensor& regions_,
       const MaybeTensor& window_mask_, double scale)
      : q(with_rows(q_)),
        k(with_rows(k_)),
        v(with_rows(v_)),
        bias(torch::stable::contiguous(bias_)),
        masked(checked(masked_, "masked", ScalarType::Float)),
        offsets(checked(offsets_, "offsets", ScalarType::Int)),
        position(checked(position_, "position", ScalarType::Int)),
        regions(checked(regions_, "regions", ScalarType::Int)),
        window_mask(checked(window_mask_, "window_mask", ScalarType::Float)) {
    check_tensor(q, "q", ScalarType::Float);
    check_tensor(k, "k", ScalarType::Float);
    check_tensor(v, "v", ScalarType::Float);
    check_tensor(bias, "bias", ScalarType::Float);
    a.windows = offsets ? offsets->size(0) - 1 : q.size(0);
    a.heads = static_cast<int>(bias.size(0));
    a.queries = static_cast<int>(bias.size(1));
    a.keys = static_cast<int>(bias.size(2));
    a.head_dim = static_cast<int>(q.size(q.dim() - 1));
    a.scale = static_cast<float>(scale);
    a.q = rows_of(q);
    a.k = rows_of(k);
    a.v = rows_of(v);
    a.bias = static_cast<const float*>(bias.data_ptr());
    a.masked = pointer<float>(masked);
    a.offsets = pointer<int32_t>(offsets);
    a.position = pointer<int32_t>(position);
    a.regions = pointer<int32_t>(regions);
    a.region_windows = regions ? regions->size(0) : 0;
    a.window_mask = pointer<float>(window_mask);
    a.mask_windows = window_mask ? window_mask->size(0) : 0;
    check_rows();
  }

  // Every index that a kernel will follow stays inside its tensor.
  void check_rows() const {
    const Tensor* lists[] = {&q, &k, &v};
    const int places[] = {a.queries, a.keys, a.keys};
    for (int i = 0; i < 3; i++) {
      const Tensor& t = *lists[i];
      const int64_t n = t.dim();
      STD_TORCH_CHECK((n == 3 || n == 4) && t.size(n - 2) == a.heads && t.size(n - 1) == a.head_dim,
                      "masked_swin: q, k, v need (windows, tokens, heads, head_dim) or (rows, heads, head_dim)");
      if (n == 4) {
        STD_TORCH_CHECK(t.size(0) == a.windows && t.size(1) == places[i], "masked_swin: bias does not fit q, k, v");
      } else {
        STD_TORCH_CHECK(offsets && position && a.queries == a.keys && a.offsets[a.windows] <= t.size(0) &&
                            position->size(0) >= a.offsets[a.windows],
                        "masked_swin: compact rows need offsets and positions that fit");
      }
    }
    if (!offsets) return;
    STD_TORCH_CHECK(a.offsets[0] == 0, "masked_swin: offsets must start at 0");
    for (int64_t w = 0; w < a.windows; w++) {
      STD_TORCH_CHECK(a.offsets[w + 1] >= a.offsets[w] && a.offsets[w + 1] - a.offsets[w] <= a.keys,
                      "masked_swin: offsets must not fall, nor exceed the window");
    }
    for (int64_t i = 0; i < a.offsets[a.windows]; i++) {
      STD_TORCH_CHECK(a.position[i] >= 0 && a.position[i] < a.keys, "masked_swin: position outside its window");
    }
  }

  // Work per chunk does not depend on the number of threads, nor does the order of any sum.
  int chunks() const { return static_cast<int>(std::min<int64_t>(MAX_CHUNKS, a.windows)); }
  template <class F>
  void for_chunks(const F& f) const {
    const int n = chunks();
    std::atomic<bool> out_of_memory{false};
    torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; chunk++)
        if (!f(chunk, a.windows * chunk / n, a.windows * (chunk + 1) / n)) out_of_memory = true;
    });
    STD_TORCH_CHECK(!out_of_memory, "masked_swin: out of memory for the scratch of window_attention");
  }
};

Tensor empty_floats(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes);
}

// Rows behind the last visible token belong to nobody.
void clear_unused(const Tensor& t, const WindowAttention& a) {
  if (t.dim() != 3) return;
  const int64_t used = a.offsets[a.windows], row = t.size(1) * t.size(2);
  std::memset(static_cast<float*>(t.data_ptr()) + used * row, 0, sizeof(float) * (t.size(0) - used) * row);
}

std::tuple<Tensor, Tensor> window_attention(Tensor q, Tensor k, Tensor v, Tensor bias, MaybeTensor masked,
                                            MaybeTensor offsets, MaybeTensor position, MaybeTensor regions,
                                            MaybeTensor window_mask, double scale) {
  Call call(q, k, v, bias, masked, offsets, position, regions, window_mask, scale);
  WindowAttention& a = call.a;
  Tensor out = a.compact_queries() ? empty_floats(q, {q.size(0), a.heads, a.head_dim})
                                   : empty_floats(q, {a.windows, a.queries, a.heads, a.head_dim});
  Tensor stats = empty_floats(q, {a.windows, 2, a.heads, a.queries});
  if (a.compact_queries()) {
    clear_unused(out, a);
    torch::stable::zero_(stats);  // places of masked tokens
  }
  a.out = rows_of(out);
  a.stats = static_cast<float*>(stats.data_ptr());
  std::vector<float> prepared(kernels().window_attention_scratch(a));
  kernels().window_attention_prepare(a, prepared.data());
  call.for_chunks([&](int64_t, int64_t first, int64_t last) {
    return kernels().window_attention_forward(a, prepared.data(), first, last);
  });
  return {out, stats};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> window_attention_backward(
    Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor bias, MaybeTensor masked, MaybeTensor offsets,
    MaybeTensor position, MaybeTensor regions, MaybeTensor window_mask, Tensor stats, double scale) {
  Call call(q, k, v, bias, masked, offsets, position, regions, window_mask, scale);
  WindowAttention& a = call.a;
  check_tensor(grad_out, "grad_out", ScalarType::Float);
  check_tensor(stats, "stats", ScalarType::Float);
  STD_TORCH_CHECK(grad_out.dim() == (a.compact_queries() ? 3 : 4) && stats.is_contiguous() &&
                      stats.numel() == a.windows * 2 * a.heads * a.queries &&
                      grad_out.numel() == (a.compact_queries() ? q.numel() : a.windows * a.queries * a.heads * a.head_dim),
                  "masked_swin: grad_out or stats do not fit the forward");
  Tensor d_out = with_rows(grad_out);
  auto like = [](const Tensor& t) {
    return empty_floats(t, std::vector<int64_t>(t.sizes().begin(), t.sizes().end()));
  };
  Tensor dq = like(q), dk = like(k), dv = like(v), d_bias = like(bias);
  Tensor d_masked = masked ? like(*masked) : empty_floats(q, {0});
  for (const Tensor* t : {&dq, &dk, &dv}) clear_unused(*t, a);
  a.grad_out = rows_of(d_out);
  a.grad_q = rows_of(dq);
  a.grad_k = rows_of(dk);
  a.grad_v = rows_of(dv);
  a.stats = static_cast<float*>(stats.data_ptr());
  a.grad_bias = static_cast<float*>(d_bias.data_ptr());
  a.grad_masked = static_cast<float*>(d_masked.data_ptr());
  std::vector<float> prepared(kernels().window_attention_scratch(a));
  kernels().window_attention_prepare(a, prepared.data());
  const size_t size = kernels().window_attention_sums(a);
  std::vector<float> sums(size * call.chunks());
  call.for_chunks([&](int64_t chunk, int64_t first, int64_t last) {
    return kernels().window_attention_backward(a, prepared.data(), sums.data() + size * chunk, first, last);
  });
  kernels().window_attention_reduce(a, prepared.data(), sums.data(), call.chunks());
  return {dq, dk, dv, d_bias, d_masked};
}

Tensor token_mask(Tensor seed, Tensor draw, Tensor sample, int64_t tokens, int64_t heads, int64_t low, int64_t high,
                  bool ratio_per_sample) {
  check_tensor(seed, "seed", ScalarType::Long);
  check_tensor(draw, "draw", ScalarType::Long);
  check_tensor(sample, "sample", ScalarType::Long);
  STD_TORCH_CHECK(seed.numel() == 1 && draw.numel() == 1 && sample.dim() == 1 && 0 <= low && low <= high && high <= 100,
                  "masked_swin: token_mask got arguments out of range");
  const Tensor samples = torch::stable::contiguous(sample);
  Tensor out = torch::stable::new_empty(sample, std::vector<int64_t>{sample.size(0), heads, tokens}, ScalarType::Bool);
  TokenMask m{};
  m.seed = static_cast<uint64_t>(*static_cast<const int64_t*>(seed.data_ptr()));
  m.draw = static_cast<uint32_t>(*static_cast<const int64_t*>(draw.data_ptr()));
  m.sample = static_cast<const int64_t*>(samples.data_ptr());
  m.samples = sample.size(0);
  m.tokens = tokens;
  m.heads = heads;
  m.low = static_cast<uint32_t>(low);
  m.high = static_cast<uint32_t>(high);
  m.ratio_per_sample = ratio_per_sample;
  m.out = static_cast<bool*>(out.data_ptr());
  torch::stable::parallel_for(0, m.samples * heads, 1,
                              [&](int64_t first, int64_t last) { kernels().token_mask(m, first, last); });
  return out;
}

}  // namespace
}  // namespace masked_swin

STABLE_TORCH_LIBRARY_IMPL(masked_swin, CPU, m) {
  m.impl("window_attention_cpu", TORCH_BOX(&masked_swin::window_attention));
  m.impl("window_attention_cpu_backward", TORCH_BOX(&masked_swin::window_attention_backward));
  m.impl("token_mask_cpu", TORCH_BOX(&masked_swin::token_mask));
}

// The instruction set in use; MASKED_SWIN_CPU_ISA=portable|avx2|avx512 in the environment asks for a lesser one.
extern "C" __attribute__((visibility("default"))) const char* masked_swin_cpu_isa() {
  return masked_swin::kernels().name;
}
