// Window attention over visible tokens, forward and backward, in fp32. The mathematics is in kernels/README.md.
//
// Queries lie in the SIMD lanes: a tile is [key][query], "cm" is [channel][query], "tm" is [token][channel]. The masked tokens of
// a window are one more key (and, as queries, columns that hold the same q). Padding lanes hold zeros or finite garbage that
// no sum reads.
#include <math.h>
#include <stdlib.h>

#include "kernels.h"
#include "simd.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

// Stands for minus infinity: a query whose best score is below `NO_KEY` has no key at all and gets 0.
constexpr float EXCLUDED = -1e30f, NO_KEY = -1e29f, SHIFT_PENALTY = -100.0f;

typedef WindowAttention Problem;

int lanes_of(const Problem& a) { return round_up(a.queries); }
int channels_of(const Problem& a) { return a.heads * a.head_dim; }
// Loads of one head may run past its columns by up to a vector.
int padded_channels(const Problem& a) { return round_up(channels_of(a)) + round_up(a.head_dim); }

// Shared by all windows, per head: bias [key][query]; with masked tokens also its maximum over the keys [query] and
// exp(bias - maximum) [key][query].
struct Prepared {
  const float *bias, *top, *exp_bias;
  static size_t tile(const Problem& a) { return (size_t)a.keys * lanes_of(a); }
  static size_t stride(const Problem& a) { return a.masked ? 2 * tile(a) + lanes_of(a) : tile(a); }
  Prepared(const Problem& a, const float* p, int head)
      : bias(p + stride(a) * head), top(bias + tile(a)), exp_bias(bias + tile(a) + lanes_of(a)) {}
};

void exponentiate(int keys, int lanes, const float* bias, float* top, float* exp_bias) {
  for (int l = 0; l < lanes; l += LANES) {
    Vec most = load(bias + l);
    for (int j = 1; j < keys; j++) most = max(most, load(bias + (size_t)j * lanes + l));
    store(top + l, most);
    for (int j = 0; j < keys; j++)
      store(exp_bias + (size_t)j * lanes + l, exp(load(bias + (size_t)j * lanes + l) - most));
  }
}

// Per-head accumulators of one chunk: gradient of the bias [key][query] and, for the masked keys, sum of U [query];
// then the gradient of masked (q, k, v).
struct Sums {
  static size_t per_head(const Problem& a) { return (size_t)(a.keys + 1) * lanes_of(a); }
  static size_t size(const Problem& a) { return per_head(a) * a.heads + 3 * padded_channels(a); }
};

struct Window {
  const Problem& a;
  const float* prepared;
  const int lanes, channels, padded;
  int64_t window = 0;
  int queries = 0, keys = 0, masked_count = 0, width = 0;  // of this window; width = lanes in use
  bool own_tile = false;                                    // bias tile of this window differs from the shared one
  const int* row = nullptr;                                 // visible key -> row of the bias tile
  // scratch
  float *memory = nullptr, *q_cm, *out_cm, *k_tm, *v_tm, *score, *tile, *exp_tile, *top;
  float *q_tm, *do_tm, *do_cm, *dq_cm, *dq_tm, *dk_tm, *dv_tm, *d_score;
  float* zero_row;
  int *place, *identity;
  unsigned char* visible;
  const float** pointers;
  float** targets;

  Window(const Problem& problem, const float* shared, bool backward)
      : a(problem), prepared(shared), lanes(lanes_of(a)), channels(channels_of(a)), padded(padded_channels(a)) {
    const size_t cm = (size_t)round_up(channels) * lanes, tm = (size_t)(a.queries + LANES) * padded,
                 key_tm = (size_t)(a.keys + 1) * padded, key_tile = (size_t)(a.keys + 1) * lanes;
    float** forward_parts[] = {&q_cm, &out_cm, &k_tm, &v_tm, &score, &tile, &exp_tile, &top, &zero_row};
    const size_t forward_sizes[] = {cm, cm, key_tm, key_tm, key_tile, key_tile, key_tile, (size_t)lanes, (size_t)padded};
    float** backward_parts[] = {&q_tm, &do_tm, &do_cm, &dq_cm, &dq_tm, &dk_tm, &dv_tm, &d_score};
    const size_t backward_sizes[] = {tm, tm, cm, cm, tm, key_tm, key_tm, key_tile};
    size_t total = 0;
    for (size_t size : forward_sizes) total += pad(size);
    if (backward)
      for (size_t size : backward_sizes) total += pad(size);
    const int tokens = a.queries > a.keys ? a.queries : a.keys;
    const size_t lists = (size_t)tokens * (2 * sizeof(int) + 1) + (size_t)a.queries * 2 * sizeof(float*);
    void* block = nullptr;
    if (posix_memalign(&block, 64, total * sizeof(float) + lists + 64)) return;
    memory = static_cast<float*>(block);
    memset(memory, 0, total * sizeof(float));
    float* next = memory;
    for (size_t i = 0; i < sizeof(forward_sizes) / sizeof(size_t); i++) {
      *forward_parts[i] = next;
      next += pad(forward_sizes[i]);
    }
    if (backward)
      for (size_t i = 0; i < sizeof(backward_sizes) / sizeof(size_t); i++) {
        *backward_parts[i] = next;
        next += pad(backward_sizes[i]);
      }
    pointers = reinterpret_cast<const float**>(next);
    targets = const_cast<float**>(pointers + a.queries);
    place = reinterpret_cast<int*>(targets + a.queries);
    identity = place + tokens;
    visible = reinterpret_cast<unsigned char*>(identity + tokens);
    for (int i = 0; i < tokens; i++) identity[i] = i;
  }
  ~Window() { free(memory); }
  Window(const Window&) = delete;

  // An odd number of cache lines: equal columns of neighbouring buffers then do not fall on one cache set.
  static size_t pad(size_t floats) { return ((floats + 15) / 16 | 1) * 16; }

  int64_t first_row(bool compact, int per_window) const { return compact ? a.offsets[window] : window * per_window; }
  float* row_of(const Rows& rows, int per_window, int i) const {
    return rows.p + (first_row(rows.compact, per_window) + i) * rows.stride;
  }

  void enter(int64_t w) {
    window = w;
    const int compact = a.offsets ? a.offsets[w + 1] - a.offsets[w] : 0;
    queries = a.compact_queries() ? compact : a.queries;
    keys = a.k.compact ? compact : a.keys;
    masked_count = a.masked ? a.keys - keys : 0;
    width = round_up(queries);
    if (a.offsets) {
      memset(visible, 0, a.keys);
      for (int j = 0; j < compact; j++) visible[place[j] = a.position[a.offsets[w] + j]] = 1;
    }
    const int32_t* region = regions();
    bool mixed = false;
    for (int i = 1; region && i < a.keys; i++) mixed |= region[i] != region[0];
    own_tile = mixed || a.window_mask || a.compact_queries();
    row = a.k.compact && !a.compact_queries() ? place : identity;
  }

  const int32_t* regions() const { return a.regions ? a.regions + window % a.region_windows * a.keys : nullptr; }

  // Where the bias of this window comes from: the shared tile, or one built here with regions, mask and gathered queries.
  Prepared bias_tile(int head) {
    Prepared shared(a, prepared, head);
    if (!own_tile) return shared;
    const int32_t* region = regions();
    const float penalty = a.masked || !a.k.compact ? SHIFT_PENALTY : EXCLUDED;
    const float* mask = a.window_mask ? a.window_mask + window % a.mask_windows * a.queries * a.keys : nullptr;
    const int tile_rows = a.compact_queries() ? keys : a.keys;
    for (int j = 0; j < tile_rows; j++) {
      const int key = a.compact_queries() ? place[j] : j;
      const float* from = shared.bias + (size_t)key * lanes;
      float* to = tile + (size_t)j * lanes;
      for (int i = 0; i < queries; i++) {
        const int query = a.compact_queries() ? place[i] : i;
        float value = from[query];
        if (region && region[query] != region[key]) value += penalty;
        if (mask) value += mask[(size_t)query * a.keys + key];
        to[i] = value < EXCLUDED ? EXCLUDED : value;
      }
      for (int i = queries; i < width; i++) to[i] = 0.0f;
    }
    shared.bias = tile;
    if (a.masked) {
      exponentiate(a.keys, lanes, tile, top, exp_tile);
      shared.top = top;
      shared.exp_bias = exp_tile;
    }
    return shared;
  }

  void load_keys() {
    for (int j = 0; j < keys; j++) {
      memcpy(k_tm + (size_t)j * padded, row_of(a.k, a.keys, j), sizeof(float) * channels);
      memcpy(v_tm + (size_t)j * padded, row_of(a.v, a.keys, j), sizeof(float) * channels);
    }
    if (a.masked) {
      memcpy(k_tm + (size_t)keys * padded, a.masked + channels, sizeof(float) * channels);
      memcpy(v_tm + (size_t)keys * padded, a.masked + 2 * channels, sizeof(float) * channels);
    }
  }

  // pointers[i] = row of query i; a masked place points to `fill`.
  void list_queries(const Rows& rows, const float* fill) {
    if (!a.masked_queries() || !rows.compact) {
      for (int i = 0; i < queries; i++) pointers[i] = row_of(rows, a.queries, i);
      return;
    }
    for (int i = 0, next = 0; i < queries; i++) pointers[i] = visible[i] ? row_of(rows, a.queries, next++) : fill;
  }

  int score_rows() const { return keys + (a.masked ? 1 : 0); }

  // score[key][query] = q.k, unscaled; the masked key, if any, is the last row
  void scores(int head) {
    const int at = head * a.head_dim;
    product(score_rows(), queries, a.head_dim, {k_tm + at, padded, 1}, q_cm + (size_t)at * lanes, lanes, score, lanes);
  }

  // Exponent of the masked key, without its maximum: scale q.k_m + max over keys of the bias.
  Vec masked_exponent(const Prepared& bias, int l) const {
    return load(score + (size_t)keys * lanes + l) * a.scale + load(bias.top + l);
  }
  // E: sum over the masked keys of exp(bias - its maximum)
  Vec masked_weight(const Prepared& bias, int l) const {
    Vec sum[2] = {};
    int parity = 0;
    for (int j = 0; j < a.keys; j++)
      if (!visible[j]) sum[parity ^= 1] += load(bias.exp_bias + (size_t)j * lanes + l);
    return sum[0] + sum[1];
  }

  bool forward() {
    list_queries(a.q, a.masked);
    gather_transposed(pointers, queries, channels, q_cm, lanes);
    load_keys();
    float* stats = a.stats + window * 2 * a.heads * a.queries;
    for (int head = 0; head < a.heads; head++) {
      const Prepared bias = bias_tile(head);
      scores(head);
      for (int l = 0; l < width; l += LANES) {
        Vec most = splat(EXCLUDED);
        for (int j = 0; j < keys; j++) {
          float* s = score + (size_t)j * lanes + l;
          const Vec v = load(s) * a.scale + load(bias.bias + (size_t)row[j] * lanes + l);
          store(s, v);
          most = max(most, v);
        }
        Vec exponent = {};
        if (masked_count) most = max(most, exponent = masked_exponent(bias, l));
        Vec sum = {};
        for (int j = 0; j < keys; j++) {
          float* s = score + (size_t)j * lanes + l;
          const Vec e = exp(load(s) - most);
          store(s, e);
          sum += e;
        }
        if (a.masked) {
          const Vec e = masked_count ? exp(exponent - most) * masked_weight(bias, l) : Vec{};
          store(score + (size_t)keys * lanes + l, e);
          sum += e;
        }
        const Vec inverse = most < NO_KEY ? Vec{} : 1.0f / sum;
        most = most < NO_KEY ? Vec{} : most;
        const int count = queries - l < LANES ? queries - l : LANES;
        memcpy(stats + head * a.queries + l, &most, sizeof(float) * count);
        memcpy(stats + (a.heads + head) * a.queries + l, &inverse, sizeof(float) * count);
        store(top + l, inverse);  // the tile's maximum is not needed any more
      }
      const int at = head * a.head_dim;
      float* out = out_cm + (size_t)at * lanes;
      product(a.head_dim, queries, score_rows(), {v_tm + at, 1, padded}, score, lanes, out, lanes);
      for (int c = 0; c < a.head_dim; c++)
        for (int l = 0; l < width; l += LANES) store(out + c * lanes + l, load(out + c * lanes + l) * load(top + l));
    }
    for (int i = 0; i < queries; i++) targets[i] = row_of(a.out, a.queries, i);
    scatter_transposed(out_cm, lanes, queries, channels, targets);
    return true;
  }

  void backward(float* sums) {
    const bool masked_queries = a.masked_queries();
    list_queries(a.q, a.masked);
    gather_transposed(pointers, queries, channels, q_cm, lanes);
    for (int i = 0; i < queries; i++) memcpy(q_tm + (size_t)i * padded, pointers[i], sizeof(float) * channels);
    list_queries(a.grad_out, nullptr);
    gather_transposed(pointers, queries, channels, do_cm, lanes);
    for (int i = 0; i < queries; i++) memcpy(do_tm + (size_t)i * padded, pointers[i], sizeof(float) * channels);
    load_keys();
    const float* stats = a.stats + window * 2 * a.heads * a.queries;
    const int rows = score_rows();
    for (int head = 0; head < a.heads; head++) {
      const int at = head * a.head_dim;
      const Prepared bias = bias_tile(head);
      float* d_bias = sums + Sums::per_head(a) * head;
      float* sum_u = d_bias + Prepared::tile(a);
      scores(head);
      product(rows, queries, a.head_dim, {v_tm + at, padded, 1}, do_cm + (size_t)at * lanes, lanes, d_score, lanes);
      for (int l = 0; l < width; l += LANES) {
        const int count = queries - l < LANES ? queries - l : LANES;
        const Vec most = load_partial(stats + head * a.queries + l, count);
        const Vec inverse = load_partial(stats + (a.heads + head) * a.queries + l, count);
        Vec dot = {};  // sum_j p_ij dp_ij, equal to do_i.o_i
        for (int j = 0; j < keys; j++) {
          float* s = score + (size_t)j * lanes + l;
          const Vec v = load(s) * a.scale + load(bias.bias + (size_t)row[j] * lanes + l);
          const Vec p = exp(v - most) * inverse;
          store(s, p);
          dot += p * load(d_score + (size_t)j * lanes + l);
        }
        Vec u = {};
        float* ds_m = d_score + (size_t)keys * lanes + l;
        if (a.masked) {
          u = masked_count ? exp(masked_exponent(bias, l) - most) * inverse : Vec{};
          const Vec weight = masked_weight(bias, l), p = u * weight;
          store(score + (size_t)keys * lanes + l, p);
          dot += p * load(ds_m);
          u *= load(ds_m) - dot;
          store(ds_m, u * weight);
          if (!own_tile) store(sum_u + l, load(sum_u + l) + u);
        }
        for (int j = 0; j < keys; j++) {
          float* d = d_score + (size_t)j * lanes + l;
          const Vec ds = load(score + (size_t)j * lanes + l) * (load(d) - dot);
          store(d, ds);
          if (a.compact_queries()) continue;
          const size_t entry = (size_t)row[j] * lanes + l;
          // The masked keys' part, exp_bias * U, is added for every key at the end: take it back where the key is visible.
          Vec total = load(d_bias + entry) + ds;
          if (a.masked && !own_tile) total -= load(bias.exp_bias + entry) * u;
          store(d_bias + entry, total);
        }
        for (int j = 0; own_tile && masked_count && j < a.keys; j++) {
          const size_t entry = (size_t)j * lanes + l;
          if (!visible[j]) store(d_bias + entry, load(d_bias + entry) + load(bias.exp_bias + entry) * u);
        }
      }
      if (a.compact_queries())
        for (int j = 0; j < keys; j++)
          for (int i = 0; i < queries; i++)
            d_bias[(size_t)place[j] * lanes + place[i]] += d_score[(size_t)j * lanes + i];
      product(a.head_dim, queries, rows, {k_tm + at, 1, padded}, d_score, lanes, dq_cm + (size_t)at * lanes, lanes);
      // Stores run over the next heads' columns, which come later.
      product(rows, a.head_dim, queries, {d_score, lanes, 1}, q_tm + at, padded, dk_tm + at, padded);
      product(rows, a.head_dim, queries, {score, lanes, 1}, do_tm + at, padded, dv_tm + at, padded);
    }
    float* d_masked = sums + Sums::per_head(a) * a.heads;
    for (int i = 0; i < queries; i++) targets[i] = dq_tm + (size_t)i * padded;
    scatter_transposed(dq_cm, lanes, queries, channels, targets);
    for (int i = 0, next = 0; i < queries; i++) {
      if (masked_queries && !visible[i])
        accumulate(d_masked, targets[i], a.scale);
      else
        scaled_copy(row_of(a.grad_q, a.queries, next++), targets[i], a.scale);
    }
    for (int j = 0; j < keys; j++) {
      scaled_copy(row_of(a.grad_k, a.keys, j), dk_tm + (size_t)j * padded, a.scale);
      scaled_copy(row_of(a.grad_v, a.keys, j), dv_tm + (size_t)j * padded, 1.0f);
    }
    if (a.masked) {
      accumulate(d_masked + padded, dk_tm + (size_t)keys * padded, a.scale);
      accumulate(d_masked + 2 * padded, dv_tm + (size_t)keys * padded, 1.0f);
    }
  }

  void scaled_copy(float* to, const float* from, float factor) const {
    for (int c = 0; c < channels; c++) to[c] = from[c] * factor;
  }
  void accumulate(float* to, const float* from, float factor) const {
    for (int c = 0; c < channels; c++) to[c] += from[c] * factor;
  }
};

size_t scratch(const Problem& a) { return Prepared::stride(a) * a.heads; }

void prepare(const Problem& a, float* out) {
  const int lanes = lanes_of(a);
  for (int head = 0; head < a.heads; head++) {
    float* bias = out + Prepared::stride(a) * head;
    const float* from = a.bias + (size_t)head * a.queries * a.keys;
    for (int j = 0; j < a.keys; j++)
      for (int i = 0; i < lanes; i++)
        bias[(size_t)j * lanes + i] = i < a.queries ? from[(size_t)i * a.keys + j] : 0.0f;
    float* top = bias + Prepared::tile(a);
    if (a.masked) exponentiate(a.keys, lanes, bias, top, top + lanes);
  }
}

bool forward(const Problem& a, const float* prepared, int64_t first, int64_t last) {
  Window window(a, prepared, false);
  if (!window.memory) return false;
  for (int64_t w = first; w < last; w++) {
    window.enter(w);
    window.forward();
  }
  return true;
}

bool backward(const Problem& a, const float* prepared, float* sums, int64_t first, int64_t last) {
  Window window(a, prepared, true);
  if (!window.memory) return false;
  memset(sums, 0, sizeof(float) * Sums::size(a));
  for (int64_t w = first; w < last; w++) {
    window.enter(w);
    window.backward(sums);
  }
  return true;
}

void reduce(const Problem& a, const float* prepared, const float* sums, int chunks) {
  const int lanes = lanes_of(a), channels = channels_of(a);
  const size_t size = Sums::size(a);
  auto total = [&](size_t entry) {
    float sum = 0.0f;
    for (int chunk = 0; chunk < chunks; chunk++) sum += sums[size * chunk + entry];
    return sum;
  };
  for (int head = 0; head < a.heads; head++) {
    const Prepared bias(a, prepared, head);
    const size_t base = Sums::per_head(a) * head;
    for (int i = 0; i < a.queries; i++) {
      const float u = a.masked ? total(base + Prepared::tile(a) + i) : 0.0f;
      for (int j = 0; j < a.keys; j++) {
        const size_t entry = (size_t)j * lanes + i;
        const float masked_part = a.masked ? bias.exp_bias[entry] * u : 0.0f;
        a.grad_bias[((size_t)head * a.queries + i) * a.keys + j] = total(base + entry) + masked_part;
      }
    }
  }
  for (int part = 0; a.masked && part < 3; part++)
    for (int c = 0; c < channels; c++)
      a.grad_masked[part * channels + c] = total(Sums::per_head(a) * a.heads + part * padded_channels(a) + c);
}

}  // namespace

void token_mask(const TokenMask& m, int64_t first, int64_t last);

#define MASKED_SWIN_STRING_(x) #x
#define MASKED_SWIN_STRING(x) MASKED_SWIN_STRING_(x)
extern const Kernels kernels = {
    MASKED_SWIN_STRING(MASKED_SWIN_ISA), scratch, Sums::size, prepare, forward, backward, reduce, token_mask,
};

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
