// Attention where every query and key has a q, k and v of its own: dense windows, and modes `drop` and `visible`.
//
// QUERY_BLOCK queries at a time meet all keys, KEY_BLOCK of them at a time. So the scores of a block, [key][query],
// stay in the fastest caches from their product to the last use. "cm" is [channel][query], "tm" is [token][channel].
#pragma once
#include "attention_window.h"
#include "product.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

constexpr int QUERY_BLOCK = 32, KEY_BLOCK = 64;
// A head's bias tile of at least BIG_TILE floats, 64 KB, serves GROUP windows in turn: the tiles of all heads would
// leave the second-level cache between windows. Forward + backward of 256 tokens, 6 heads of 30: 0.53 of the floor
// against 0.45 without groups. Smaller tiles gain nothing, and then reading a window in the order of memory is faster.
constexpr size_t BIG_TILE = 1 << 14;
constexpr int GROUP = 4;

// Brings the rows of the next window into the cache, in the order of memory and a line at a time. It is called between
// products: the processor ignores prefetches that follow each other too fast.
struct Ahead {
  struct List {
    const float* row;
    int64_t stride;
    int64_t left;  // rows
  };
  List lists[7];
  int count, next, row_bytes;
  const char *line = nullptr, *end = nullptr;

  void start(const AttentionWindow& window, int64_t first, int64_t last, bool backward) {
    const WindowAttention& a = window.a;
    const int queries = a.bias.queries, keys = a.bias.keys;
    count = next = 0;
    row_bytes = (int)sizeof(float) * a.bias.heads * a.head_dim;
    auto add = [&](const TokenRows& rows, int tokens) {
      const int64_t left = rows.compact ? a.offsets[last] - a.offsets[first] : (last - first) * tokens;
      lists[count++] = {window.row_of(rows, tokens, 0, first), rows.stride, left};
    };
    add(a.q, queries), add(a.k, keys), add(a.v, keys);
    if (backward)
      add(a.grad_out, queries), add(a.grad_q, queries), add(a.grad_k, keys), add(a.grad_v, keys);
    else
      add(a.out, queries);
  }
  INLINE void step() {
    if (line >= end && !next_row()) return;
    __builtin_prefetch(line, 0, 2);
    __builtin_prefetch(line + 64, 0, 2);
    line += 128;
  }
  __attribute__((noinline)) bool next_row() {
    for (int tries = 0; tries < count; tries++) {
      List& list = lists[next];
      next = next + 1 == count ? 0 : next + 1;
      if (list.left == 0) continue;
      list.left--;
      line = (const char*)((uintptr_t)list.row & ~(uintptr_t)63);
      end = (const char*)list.row + row_bytes;
      list.row += list.stride;
      return true;
    }
    count = 0;
    return false;
  }
};

// Heads of at most STRIDE channels: a stride that the compiler knows makes the addresses of products constant.
template <int STRIDE>
struct DenseAttention : AttentionWindow {
  static_assert(QUERY_BLOCK % LANES == 0 && STRIDE % LANES == 0);
  float *k_tm, *v_tm, *q_cm, *score, *out_cm;  // of one head, k_tm with the scale
  float *highest, *total;                      // [query]: the largest score; the sum of the exponentials
  float *q_tm, *do_tm, *do_cm, *d_score, *dots, *dk_tm, *dv_tm;
  Ahead ahead;
  const float** pointers;
  float** targets;
  int head = 0, first = 0, count = 0, width = 0;  // the block's queries, and their number up to whole vectors
  const float* bias = nullptr;
  Scratch scratch;

  DenseAttention(const WindowAttention& problem, const float* shared_bias, bool backward)
      : AttentionWindow(problem, shared_bias), scratch([&](Scratch& s) { lay_out(s, backward); }) {
    if (scratch.ok()) start();
  }

  void lay_out(Scratch& s, bool backward) {
    AttentionWindow::lay_out(s);
    const size_t key_tm = (size_t)a.bias.keys * STRIDE, block = (size_t)STRIDE * QUERY_BLOCK,
                 tile = (size_t)a.bias.keys * QUERY_BLOCK;
    s.take(key_tm, k_tm, v_tm);
    s.take(block, q_cm, out_cm);
    s.take(tile, score);
    s.take(QUERY_BLOCK, highest, total);
    s.take(QUERY_BLOCK, pointers);
    s.take(QUERY_BLOCK, targets);
    if (!backward) return;
    s.take(block, do_cm, q_tm, do_tm);
    s.take(tile, d_score);
    s.take(QUERY_BLOCK, dots);
    s.take(key_tm, dk_tm, dv_tm);
  }

  void run(float* sums, int64_t first_window, int64_t last_window) {
    const int64_t group = a.offsets || a.window_mask || PreparedBias::tile(a.bias) < BIG_TILE ? 1 : GROUP;
    for (int64_t begin = first_window, end; begin < last_window; begin = end) {
      end = begin + group < last_window ? begin + group : last_window;
      ahead.start(*this, end, end + group < last_window ? end + group : last_window, sums != nullptr);
      for (int h = 0; h < a.bias.heads; h++)
        for (int64_t w = begin; w < end; w++) {
          if (w != window) AttentionWindow::enter(w);
          enter(h);
          if (sums)
            backward(sums);
          else
            forward();
        }
    }
  }

  int at() const { return head * a.head_dim; }

  void enter(int h) {
    head = h;
    bias = bias_of(h);
    const float *k = row_of(a.k, a.bias.keys, 0) + at(), *v = row_of(a.v, a.bias.keys, 0) + at();
    const int64_t k_stride = a.k.stride, v_stride = a.v.stride;
    for (int j = 0; j < keys; j++, k += k_stride) copy(k_tm + (size_t)j * STRIDE, k, a.scale);
    for (int j = 0; j < keys; j++, v += v_stride) copy(v_tm + (size_t)j * STRIDE, v, 1.0f);
  }

  // Copies a head's channels: in, to a row of STRIDE floats, or out.
  INLINE void copy(float* __restrict to, const float* __restrict from, float factor, bool in = true) const {
    const int last = a.head_dim - LANES;
    for (int c = 0; c < last; c += LANES) store(to + c, load(from + c) * factor);
    if (last >= 0)
      store(to + last, load(from + last) * factor);
    else if (in)  // whole: a load soon after would wait for a masked store
      store(to, load_first(from, a.head_dim) * factor);
    else
      store_first(to, load_first(from, a.head_dim) * factor, a.head_dim);
  }

  void enter_block(int query) {
    first = query;
    count = queries - first < QUERY_BLOCK ? queries - first : QUERY_BLOCK;
    width = round_up(count);
    load_cm(a.q, q_cm);
  }
  void load_cm(const TokenRows& rows, float* cm) {
    for (int i = 0; i < count; i++) pointers[i] = row_of(rows, a.bias.queries, first + i) + at();
    gather_transposed(pointers, count, width, a.head_dim, cm, QUERY_BLOCK);
  }
  void store_cm(const float* cm, const TokenRows& rows) {
    for (int i = 0; i < count; i++) targets[i] = row_of(rows, a.bias.queries, first + i) + at();
    scatter_transposed(cm, QUERY_BLOCK, count, a.head_dim, targets);
  }

  template <class F>
  void each_key_block(F&& f) const {
    for (int j = 0; j < keys; j += KEY_BLOCK) f(j, keys - j < KEY_BLOCK ? keys - j : KEY_BLOCK);
  }

  void scores() {
    for (int l = 0; l < width; l += LANES) store(highest + l, splat(EXCLUDED)), store(total + l, Vec{});
    each_key_block([&](int j, int rows) {
      float* s = score + (size_t)j * QUERY_BLOCK;
      product<Fp32>(rows, width, a.head_dim, {k_tm + (size_t)j * STRIDE, STRIDE, 1}, q_cm, QUERY_BLOCK,
                    [=, this](int i, int l, Vec v) INLINE_LAMBDA {
                      store(s + (size_t)i * QUERY_BLOCK + l, v);
                      if (l == 0) ahead.step();
                    });
      add_bias(j, rows);
    });
  }
  void add_bias(int j, int rows) {
    for (int l = 0; l < width; l += LANES) {
      Vec top = load(highest + l);
      for (int i = j; i < j + rows; i++) {
        float* s = score + (size_t)i * QUERY_BLOCK + l;
        const Vec v = load(s) + load(bias + (size_t)bias_row[i] * lanes + first + l);
        store(s, v);
        top = max(top, v);
      }
      store(highest + l, top);
    }
  }

  void exponentials(int j, int rows) {
    for (int l = 0; l < width; l += LANES) {
      const Vec top = load(highest + l);
      Vec sum = load(total + l);
      float* s = score + (size_t)j * QUERY_BLOCK + l;
      for (int i = 0; i < rows; i++, s += QUERY_BLOCK) {
        if (i & 1) ahead.step();
        const Vec e = exp(load(s) - top);
        store(s, e);
        sum += e;
      }
      store(total + l, sum);
    }
  }
  // Makes the sums their inverses, 0 for queries without a key.
  void invert() {
    for (int l = 0; l < width; l += LANES)
      store(total + l, load(highest + l) < NO_KEY ? Vec{} : 1.0f / load(total + l));
  }

  // cm += tm [key][channel]^T times tile [key][query]
  void add_product(const float* tm, const float* tile, int j, int rows, float* cm) {
    product<Fp32>(a.head_dim, width, rows, {tm + (size_t)j * STRIDE, 1, STRIDE}, tile + (size_t)j * QUERY_BLOCK,
                  QUERY_BLOCK, [=, this](int c, int l, Vec v) INLINE_LAMBDA {
                    if (l == 0) ahead.step();
                    float* to = cm + (size_t)c * QUERY_BLOCK + l;
                    store(to, load(to) + v);
                  });
  }
  // sums [key][channel] += tile [key][query] times tm [query][channel]
  void add_token_sum(const float* tile, const float* tm, int j, int rows, float* sums) {
    float* sum = sums + (size_t)j * STRIDE;
    product<Fp32>(rows, a.head_dim, count, {tile + (size_t)j * QUERY_BLOCK, QUERY_BLOCK, 1}, tm, STRIDE,
                  [=](int i, int l, Vec v) INLINE_LAMBDA {
                    float* to = sum + (size_t)i * STRIDE + l;
                    store(to, load(to) + v);
                  });
  }
  void clear_cm(float* cm) const { memset(cm, 0, sizeof(float) * QUERY_BLOCK * a.head_dim); }
  void divide_cm(float* cm) const {
    for (int c = 0; c < a.head_dim; c++)
      for (int l = 0; l < width; l += LANES) {
        float* to = cm + (size_t)c * QUERY_BLOCK + l;
        store(to, load(to) * load(total + l));
      }
  }

  void forward() {
    for (int i = 0; i < queries; i += QUERY_BLOCK) {
      enter_block(i);
      scores();
      clear_cm(out_cm);
      each_key_block([&](int j, int rows) {
        exponentials(j, rows);
        add_product(v_tm, score, j, rows, out_cm);
      });
      invert();
      divide_cm(out_cm);
      store_cm(out_cm, a.out);
    }
  }

  void backward(float* sums) {
    float* d_bias = bias_sums(sums, head);
    const size_t size = sizeof(float) * STRIDE * keys;
    memset(dk_tm, 0, size);
    memset(dv_tm, 0, size);
    for (int i = 0; i < queries; i += QUERY_BLOCK) {
      enter_block(i);
      scores();
      each_key_block([&](int j, int rows) { exponentials(j, rows); });
      invert();
      load_cm(a.grad_out, do_cm);
      divide_cm(do_cm);
      for (int t = 0; t < count; t++) {
        copy(q_tm + (size_t)t * STRIDE, row_of(a.q, a.bias.queries, i + t) + at(), 1.0f);
        copy(do_tm + (size_t)t * STRIDE, row_of(a.grad_out, a.bias.queries, i + t) + at(), total[t]);
      }
      for (int l = 0; l < width; l += LANES) store(dots + l, Vec{});
      each_key_block([&](int j, int rows) {
        float* d = d_score + (size_t)j * QUERY_BLOCK;
        const float* e = score + (size_t)j * QUERY_BLOCK;
        product<Fp32>(rows, width, a.head_dim, {v_tm + (size_t)j * STRIDE, STRIDE, 1}, do_cm, QUERY_BLOCK,
                      [=, this](int i, int l, Vec v) INLINE_LAMBDA {
                        if (l == 0) ahead.step();
                        store(d + (size_t)i * QUERY_BLOCK + l, v);
                        store(dots + l, load(dots + l) + v * load(e + (size_t)i * QUERY_BLOCK + l));
                      });
        add_token_sum(score, do_tm, j, rows, dv_tm);
      });
      for (int l = 0; l < width; l += LANES) store(dots + l, load(dots + l) * load(total + l));
      clear_cm(out_cm);
      each_key_block([&](int j, int rows) {
        score_gradients(j, rows, d_bias);
        add_token_sum(d_score, q_tm, j, rows, dk_tm);
        add_product(k_tm, d_score, j, rows, out_cm);
      });
      store_cm(out_cm, a.grad_q);
    }
    for (int j = 0; j < keys; j++) {
      copy(row_of(a.grad_k, a.bias.keys, j) + at(), dk_tm + (size_t)j * STRIDE, a.scale, false);
      copy(row_of(a.grad_v, a.bias.keys, j) + at(), dv_tm + (size_t)j * STRIDE, 1.0f, false);
    }
    finish_bias_sums(sums, head);
  }

  // Makes d_score the gradient of the scores, and adds it to that of the bias.
  void score_gradients(int j, int rows, float* d_bias) {
    for (int l = 0; l < width; l += LANES) {
      const Vec dot = load(dots + l);
      for (int i = j; i < j + rows; i++) {
        float *d = d_score + (size_t)i * QUERY_BLOCK + l, *sum = d_bias + (size_t)bias_row[i] * lanes + first + l;
        const Vec ds = load(score + (size_t)i * QUERY_BLOCK + l) * (load(d) - dot);
        store(d, ds);
        store(sum, load(sum) + ds);
      }
    }
  }
};

}  // namespace
}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
