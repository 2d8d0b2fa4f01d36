// Window attention over visible tokens, forward and backward, in fp32. The mathematics is in kernels/README.md.
//
// "cm" is [channel][query], "tm" is [token][channel]. The backward computes the exponentials again from q and k. Masked
// queries with one shared q are one query: q, its gradient and the products q.k hold the visible queries and this one.
#include "dense_attention.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

typedef WindowAttention Problem;

int channels_of(const Problem& a) { return a.bias.heads * a.head_dim; }
// Loads of one head run past its columns by up to a vector.
int padded_channels(const Problem& a) { return round_up(channels_of(a)) + LANES; }

// A window whose masked tokens share one q, k and v.
struct SharedWindow : AttentionWindow {
  const int channels, padded;
  int own_queries = 0;  // those with a q of their own
  Tile tile{};
  float *q_cm, *out_cm, *k_tm, *v_tm, *qk, *score, *inverse, *shared, *weight, *own_top, *own_total, *own_exp;
  float *q_tm, *do_tm, *do_cm, *dq_cm, *dq_tm, *dk_tm, *dv_tm, *d_score, *own_u;
  const float** pointers;
  float** targets;
  Scratch scratch;

  SharedWindow(const Problem& problem, const float* shared_bias, bool backward)
      : AttentionWindow(problem, shared_bias),
        channels(channels_of(a)),
        padded(padded_channels(a)),
        scratch([&](Scratch& s) { lay_out(s, backward); }) {
    if (scratch.ok()) start();
  }

  void lay_out(Scratch& s, bool backward) {
    AttentionWindow::lay_out(s);
    const size_t cm = (size_t)round_up(channels) * lanes, tm = (size_t)a.bias.queries * padded,
                 key_tm = (size_t)(a.bias.keys + 1) * padded, key_tile = (size_t)(a.bias.keys + 1) * lanes;
    s.take(cm, q_cm, out_cm);
    s.take(key_tm, k_tm, v_tm);
    s.take(key_tile, qk, score);
    s.take(lanes, inverse, shared, weight);
    if (a.window_mask) s.take(lanes, own_top, own_total, own_u);
    if (a.window_mask) s.take(key_tile, own_exp);
    s.take(a.bias.queries, pointers);
    s.take(a.bias.queries, targets);
    if (!backward) return;
    s.take(tm, q_tm, do_tm, dq_tm);
    s.take(cm, do_cm, dq_cm);
    s.take(key_tm, dk_tm, dv_tm);
    s.take(key_tile, d_score);
  }

  void enter(int64_t w) {
    AttentionWindow::enter(w);
    tile = {lanes, round_up(queries), keys, a.bias.keys, true, a.scale, bias_row, visible};
    if (a.q.compact && tile.any_masked()) tile.shared_query = visible_lanes;
    own_queries = tile.shared_query ? keys : queries;
  }

  int unique_queries() const { return own_queries + (tile.shared_query != nullptr); }

  BiasTile bias_of(int head) const {
    if (!a.window_mask) return prepared.at(mask_pattern(), head);
    const float* bias = whole_bias(head);
    exponentiate(a.bias.keys, lanes, bias, own_top, own_total, own_exp);
    return {bias, own_top, own_total, own_exp};
  }

  void load_keys() {
    for (int j = 0; j < tile.keys; j++) {
      memcpy(k_tm + (size_t)j * padded, row_of(a.k, a.bias.keys, j), sizeof(float) * channels);
      memcpy(v_tm + (size_t)j * padded, row_of(a.v, a.bias.keys, j), sizeof(float) * channels);
    }
    memcpy(k_tm + (size_t)tile.keys * padded, a.shared_qkv + channels, sizeof(float) * channels);
    memcpy(v_tm + (size_t)tile.keys * padded, a.shared_qkv + 2 * channels, sizeof(float) * channels);
  }

  void load_queries() {
    for (int i = 0; i < own_queries; i++) pointers[i] = row_of(a.q, a.bias.queries, i);
    if (tile.shared_query) pointers[own_queries] = a.shared_qkv;
    gather_transposed(pointers, unique_queries(), round_up(unique_queries()), channels, q_cm, lanes);
  }
  void load_gradients() {
    for (int i = 0; i < queries; i++) pointers[i] = row_of(a.grad_out, a.bias.queries, i);
    gather_transposed(pointers, queries, tile.width, channels, do_cm, lanes);
  }
  void copy_rows(int count, float* tm) const {
    for (int i = 0; i < count; i++) memcpy(tm + (size_t)i * padded, pointers[i], sizeof(float) * channels);
  }

  void exponentials(int head, const BiasTile& bias) {
    const int at = head * a.head_dim;
    auto multiply = [&] {
      product<Fp32>(tile.rows(), unique_queries(), a.head_dim, {k_tm + at, padded, 1}, q_cm + (size_t)at * lanes, lanes,
                    qk, lanes);
    };
    multiply();
    if (tile.factored_softmax(bias, qk, score, inverse, shared, weight)) return;
    multiply();
    tile.softmax(bias, qk, score, inverse, shared, weight);
  }

  void forward() {
    load_queries();
    load_keys();
    for (int head = 0; head < a.bias.heads; head++) {
      exponentials(head, bias_of(head));
      const int at = head * a.head_dim;
      float* out = out_cm + (size_t)at * lanes;
      product<Fp32>(a.head_dim, queries, tile.rows(), {v_tm + at, 1, padded}, score, lanes,
                    [&](int c, int l, Vec v)
                        INLINE_LAMBDA { store(out + (size_t)c * lanes + l, v * load(inverse + l)); });
    }
    for (int i = 0; i < queries; i++) targets[i] = row_of(a.out, a.bias.queries, i);
    scatter_transposed(out_cm, lanes, queries, channels, targets);
  }

  void backward(float* sums) {
    load_queries();
    copy_rows(unique_queries(), q_tm);
    load_gradients();
    copy_rows(queries, do_tm);
    load_keys();
    for (int head = 0; head < a.bias.heads; head++) {
      const int at = head * a.head_dim, rows = tile.rows();
      const BiasTile bias = bias_of(head);
      float* d_bias = BiasSums::visible(a.bias, sums, head);
      float* sum_u = a.window_mask ? own_u : BiasSums::shared(a.bias, sums, mask_pattern(), head);
      if (a.window_mask) memset(own_u, 0, sizeof(float) * lanes);
      exponentials(head, bias);
      divide_by_sums(at);
      product<Fp32>(rows, queries, a.head_dim, {v_tm + at, padded, 1}, do_cm + (size_t)at * lanes, lanes, d_score,
                    lanes);
      tile.softmax_backward(bias, score, d_score, inverse, shared, weight, d_bias, sum_u);
      if (a.window_mask) {
        for (int j = 0; j < a.bias.keys; j++)
          for (int l = 0; l < lanes; l += LANES) {
            const size_t entry = (size_t)j * lanes + l;
            store(d_bias + entry, load(d_bias + entry) + load(own_exp + entry) * load(own_u + l));
          }
      }
      const float* ds = d_score;
      if (tile.shared_query) tile.reduce_qk(d_score, qk), ds = qk;
      product<Fp32>(a.head_dim, unique_queries(), rows, {k_tm + at, 1, padded}, ds, lanes, dq_cm + (size_t)at * lanes,
                    lanes);
      token_sum<Fp32>(rows, a.head_dim, unique_queries(), {ds, lanes, 1}, q_tm + at, padded, a.scale, false, dk_tm + at,
                      padded);
      token_sum<Fp32>(rows, a.head_dim, queries, {score, lanes, 1}, do_tm + at, padded, 1.0f, false, dv_tm + at,
                      padded);
    }
    store_gradients(sums + BiasSums::size(a.bias));
  }

  void run(float* sums, int64_t first, int64_t last) {
    for (int64_t w = first; w < last; w++) {
      enter(w);
      if (sums)
        backward(sums);
      else
        forward();
    }
  }

  // Divides the gradient of one head's output by the sum of its exponentials.
  void divide_by_sums(int at) const {
    for (int c = at; c < at + a.head_dim; c++) {
      float* row = do_cm + (size_t)c * lanes;
      for (int l = 0; l < tile.width; l += LANES) store(row + l, load(row + l) * load(inverse + l));
    }
    for (int i = 0; i < queries; i++)
      for (int c = at; c < at + a.head_dim; c++) do_tm[(size_t)i * padded + c] *= inverse[i];
  }

  void store_gradients(float* d_shared_qkv) {
    for (int i = 0; i < unique_queries(); i++) targets[i] = dq_tm + (size_t)i * padded;
    scatter_transposed(dq_cm, lanes, unique_queries(), channels, targets);
    for (int i = 0; i < own_queries; i++) scaled_copy(row_of(a.grad_q, a.bias.queries, i), targets[i], a.scale);
    if (tile.shared_query) accumulate(d_shared_qkv, targets[own_queries], a.scale);
    for (int j = 0; j < tile.keys; j++) {
      scaled_copy(row_of(a.grad_k, a.bias.keys, j), dk_tm + (size_t)j * padded, 1.0f);
      scaled_copy(row_of(a.grad_v, a.bias.keys, j), dv_tm + (size_t)j * padded, 1.0f);
    }
    accumulate(d_shared_qkv + channels, dk_tm + (size_t)tile.keys * padded, 1.0f);
    accumulate(d_shared_qkv + 2 * channels, dv_tm + (size_t)tile.keys * padded, 1.0f);
  }

  void scaled_copy(float* to, const float* from, float factor) const {
    for (int c = 0; c < channels; c++) to[c] = from[c] * factor;
  }
  void accumulate(float* to, const float* from, float factor) const {
    for (int c = 0; c < channels; c++) to[c] += from[c] * factor;
  }
};

size_t prepared_size(const Problem& a) { return PreparedBias::size(a.bias); }
size_t sums_size(const Problem& a) { return BiasSums::size(a.bias) + 3 * channels_of(a); }
int prepare_jobs(const Problem& a) { return a.bias.heads; }
void prepare(const Problem& a, float* prepared, int job) { PreparedBias::fill(a.bias, prepared, job); }

template <class Window>
bool each_window(const Problem& a, const float* prepared, float* sums, int64_t first, int64_t last) {
  Window window(a, prepared, sums != nullptr);
  if (!window.scratch.ok()) return false;
  window.run(sums, first, last);
  return true;
}

bool run(const Problem& a, const float* prepared, float* sums, int64_t first, int64_t last) {
  if (a.shared_qkv) return each_window<SharedWindow>(a, prepared, sums, first, last);
  if (a.head_dim <= 32) return each_window<DenseAttention<32>>(a, prepared, sums, first, last);
  constexpr int WIDE = 144;  // not 128: rows a power of 2 apart share the sets of a cache
  static_assert(WIDE >= MAX_HEAD_DIM);
  return each_window<DenseAttention<WIDE>>(a, prepared, sums, first, last);
}

bool forward(const Problem& a, const float* prepared, int64_t first, int64_t last) {
  return run(a, prepared, nullptr, first, last);
}

bool backward(const Problem& a, const float* prepared, float* sums, int64_t first, int64_t last) {
  return run(a, prepared, sums, first, last);
}

int finish_jobs(const Problem& a) { return a.bias.heads; }
void finish(const Problem& a, const float* prepared, float* total, int head) {
  BiasSums::finish({a.bias, prepared}, total, a.grad_bias, head);
  if (a.shared_qkv && head == 0)
    memcpy(a.grad_shared_qkv, total + BiasSums::size(a.bias), sizeof(float) * 3 * channels_of(a));
}

}  // namespace

extern const Steps<WindowAttention> window_attention_steps = {prepared_size, sums_size, prepare_jobs, finish_jobs,
                                                              prepare,       forward,   backward,     finish};

}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
