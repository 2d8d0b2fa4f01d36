// One window and head of attention: softmax and its gradient on tiles, shared by window_attention and swin_block.
//
// A tile is [key][query] with queries in the SIMD lanes. `masked` tokens of the window are ONE more key, the last row:
// they share k and v, so that only the sum of exp(bias) over them, `weight`, tells their number and places.
#pragma once
#include "kernels.h"
#include "product.h"
#include "scratch.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

// Stands for minus infinity: a query whose best score is below `NO_KEY` has no key at all and gets 0.
constexpr float NO_KEY = -1e29f;

struct Bias {  // of one head, [key of the window][query]
  const float* bias;
  const float* top;        // [query]: largest bias over the keys
  const float* exp_total;  // [query]: sum of exp_bias over the keys
  const float* exp_bias;   // exp(bias - top)
};

// bias -> top, exp_total and exp_bias
void exponentiate(int keys, int lanes, const float* bias, float* top, float* exp_total, float* exp_bias) {
  for (int l = 0; l < lanes; l += LANES) {
    Vec most = load(bias + l), total = {};
    for (int j = 1; j < keys; j++) most = max(most, load(bias + (size_t)j * lanes + l));
    store(top + l, most);
    for (int j = 0; j < keys; j++) {
      const Vec e = exp(load(bias + (size_t)j * lanes + l) - most);
      store(exp_bias + (size_t)j * lanes + l, e);
      total += e;
    }
    store(exp_total + l, total);
  }
}

// Which queries of one vector are visible, and how many are before them.
struct Group {
  uint32_t visible;
  int before;
};

// Where the visible queries and keys of a window lie in its tiles; in a tile of their own they are side by side.
struct Part {
  const Group* groups;
  const int* place;        // of each
  int count;               // at least 1
  int whole_lanes, lanes;  // strides of both tiles

  // part[i] = whole[place[i]], and 0 in lanes without a query. Writes up to LANES values behind.
  INLINE void take_row(const float* whole, float* part) const {
    store(part + last(), Vec{});
    for (int l = 0; l < whole_lanes; l += LANES) {
      const Group g = groups[l / LANES];
      compress(part + g.before, g.visible, load(whole + l));
    }
  }
  // part[j][i] = whole[place[j]][place[i]]. For the first key, lanes without a query hold 1: no sum of exponentials
  // vanishes.
  __attribute__((noinline)) void take(const float* whole, float* part) const {
    for (int j = 0; j < count; j++) take_row(whole + (size_t)place[j] * whole_lanes, part + (size_t)j * lanes);
    store(part + last(), expand(part + last(), (1u << (count - last())) - 1, splat(1.0f)));
  }
  // whole[place[j]][place[i]] += part[j][i]
  __attribute__((noinline)) void add(const float* part, float* whole) const {
    for (int j = 0; j < count; j++, part += lanes)
      for (int l = 0; l < whole_lanes; l += LANES) {
        const Group g = groups[l / LANES];
        float* to = whole + (size_t)place[j] * whole_lanes + l;
        store(to, load(to) + expand(part + g.before, g.visible, Vec{}));
      }
  }

 private:
  int last() const { return round_up(count) - LANES; }
};

struct Tile {
  int lanes;     // stride of a row
  int width;     // lanes in use
  int keys;      // visible keys, the first rows
  int all_keys;  // of the window
  bool masked;   // masked tokens take part: row `keys`
  float scale;
  const int* row;  // visible key -> its row of the bias
  const unsigned char* visible;
  // Masked queries share their scores as masked keys do. With groups, raw scores are of the visible queries only, side
  // by side, and then of one that stands for all masked ones.
  const Group* groups = nullptr;

  int rows() const { return keys + masked; }
  bool any_masked() const { return masked && keys < all_keys; }
  int raw_queries() const { return groups ? keys + 1 : width; }

  // Raw values of the queries at lanes l.
  Vec spread(const float* raw, int l) const {
    if (!groups) return load(raw + l);
    const Group g = groups[l / LANES];
    return expand(raw + g.before, g.visible, splat(raw[keys]));
  }
  // The reverse for gradients: those of masked queries are added up.
  __attribute__((noinline)) void gather_queries(const float* tile, float* raw) const {
    for (int j = 0; j < rows(); j++, tile += lanes, raw += lanes) {
      Vec rest = {};
      for (int l = 0; l < width; l += LANES) {
        const Group g = groups[l / LANES];
        rest += compress(raw + g.before, g.visible, load(tile + l));
      }
      raw[keys] = sum(rest);
    }
  }

  // Whether `part` of the sum of all exp(bias) is so large that a difference from the whole is exact.
  bool mostly_masked(const Bias& b, Vec part, int l) const { return all_above(part, load(b.exp_total + l) * 0.1f); }

  // Sum over the masked keys of exp(bias - top).
  Vec masked_weight(const Bias& b, int l) const {
    Vec sum[2] = {};
    int parity = 0;
    for (int j = 0; j < all_keys; j++)
      if (!visible[j]) sum[parity ^= 1] += load(b.exp_bias + (size_t)j * lanes + l);
    return sum[0] + sum[1];
  }

  // The same as `softmax` below, faster: exp(q.k - maximum) exp(bias) needs neither the bias nor the masked keys' rows.
  // False if some sum is too small to be exact, or no key is there: the raw scores must then be computed again, for
  // `softmax`.
  __attribute__((noinline)) bool factored_softmax(const Bias& b, float* raw, float* score, float* inverse,
                                                  float* shared, float* weight) const {
    constexpr float SAFE = 1e-3f;  // the largest exponents are then small, and so is their rounding error
    const int used = keys + any_masked();
    for (int l = 0; l < raw_queries(); l += LANES) {
      Vec most = splat(EXCLUDED);
      for (int j = 0; j < used; j++) most = max(most, load(raw + (size_t)j * lanes + l) * scale);
      for (int j = 0; j < used; j++) {
        float* s = raw + (size_t)j * lanes + l;
        store(s, exp(load(s) * scale - most));
      }
      if (used < rows()) store(raw + (size_t)keys * lanes + l, Vec{});
    }
    for (int l = 0; l < width; l += LANES) {
      if (!all_above(load(b.top + l), splat(NO_KEY))) return false;  // some query may see no key at all
      Vec total = {}, seen = {};
      for (int j = 0; j < keys; j++) {
        const Vec exp_bias = load(b.exp_bias + (size_t)row[j] * lanes + l);
        const Vec e = spread(raw + (size_t)j * lanes, l) * exp_bias;
        store(score + (size_t)j * lanes + l, e);
        total += e;
        seen += exp_bias;
      }
      if (masked) {
        const Vec common = spread(raw + (size_t)keys * lanes, l), rest = load(b.exp_total + l) - seen;
        const Vec w = mostly_masked(b, rest, l) ? rest : masked_weight(b, l);
        store(shared + l, common);
        store(weight + l, w);
        store(score + (size_t)keys * lanes + l, common * w);
        total += common * w;
      }
      if (!all_above(total, splat(SAFE))) return false;
      store(inverse + l, 1.0f / total);
    }
    return true;
  }

  // raw: q.k -> score: exponentials, unnormalised (the two may be one). Per query: their inverse sum, and for the
  // masked keys the common factor `shared` = exp(scale q.k_m + top - maximum) and `weight`; row `keys` of score =
  // shared * weight.
  __attribute__((noinline)) void softmax(const Bias& b, const float* raw, float* score, float* inverse, float* shared,
                                         float* weight) const {
    for (int l = 0; l < width; l += LANES) {
      Vec most = splat(EXCLUDED);
      for (int j = 0; j < keys; j++) {
        const Vec v = spread(raw + (size_t)j * lanes, l) * scale + load(b.bias + (size_t)row[j] * lanes + l);
        store(score + (size_t)j * lanes + l, v);
        most = max(most, v);
      }
      Vec exponent = {}, sum = {};
      if (any_masked()) most = max(most, exponent = spread(raw + (size_t)keys * lanes, l) * scale + load(b.top + l));
      for (int j = 0; j < keys; j++) {
        float* s = score + (size_t)j * lanes + l;
        const Vec e = exp(load(s) - most);
        store(s, e);
        sum += e;
      }
      if (masked) {
        const Vec factor = any_masked() ? exp(exponent - most) : Vec{}, w = masked_weight(b, l);
        store(shared + l, factor);
        store(weight + l, w);
        store(score + (size_t)keys * lanes + l, factor * w);
        sum += factor * w;
      }
      store(inverse + l, most < NO_KEY ? Vec{} : 1.0f / sum);
    }
  }

  // score: the exponentials e. d_score: (gradient of the output / sum of e) . v -> gradient of the scores. The gradient
  // of the bias is added to d_bias [key][query]: ds for a visible key, exp_bias * U for a masked one. Where most keys
  // are masked, U goes into sum_u instead, from which every key gets exp_bias * U at the end; here it is taken back for
  // the visible ones.
  __attribute__((noinline)) void softmax_backward(const Bias& b, const float* score, float* d_score,
                                                  const float* inverse, const float* shared, const float* weight,
                                                  float* d_bias, float* sum_u) const {
    for (int l = 0; l < width; l += LANES) {
      Vec dots[2] = {};
      for (int j = 0; j < rows(); j++)
        dots[j & 1] += load(score + (size_t)j * lanes + l) * load(d_score + (size_t)j * lanes + l);
      const Vec dot = (dots[0] + dots[1]) * load(inverse + l);  // sum_j p_ij dp_ij / sum of e
      Vec u = {};
      if (masked) {
        float* d = d_score + (size_t)keys * lanes + l;
        u = load(shared + l) * (load(d) - dot);
        store(d, u * load(weight + l));
        if (mostly_masked(b, load(weight + l), l)) {
          store(sum_u + l, load(sum_u + l) + u);
        } else {
          for (int j = 0; j < all_keys; j++) {
            if (visible[j]) continue;
            const size_t entry = (size_t)j * lanes + l;
            store(d_bias + entry, load(d_bias + entry) + load(b.exp_bias + entry) * u);
          }
          u = Vec{};
        }
      }
      for (int j = 0; j < keys; j++) {
        float* d = d_score + (size_t)j * lanes + l;
        const Vec ds = load(score + (size_t)j * lanes + l) * (load(d) - dot);
        store(d, ds);
        if (!d_bias) continue;
        const size_t entry = (size_t)row[j] * lanes + l;
        Vec total = load(d_bias + entry) + ds;
        if (masked) total -= load(b.exp_bias + entry) * u;
        store(d_bias + entry, total);
      }
    }
  }
};

// The bias of every kind of window and head, made once per call and read by all windows.
struct PreparedBias {
  const PositionBias& p;
  const float* memory;

  static int lanes(const PositionBias& p) { return round_up(p.queries); }
  static size_t tile(const PositionBias& p) { return (size_t)p.keys * lanes(p); }
  static size_t per_head(const PositionBias& p) { return 2 * tile(p) + 2 * lanes(p); }
  static size_t size(const PositionBias& p) { return per_head(p) * p.heads * p.kinds; }

  Bias at(int kind, int head) const {
    const float* bias = memory + per_head(p) * (kind * p.heads + head);
    const float* top = bias + tile(p);
    return {bias, top, top + lanes(p), top + 2 * lanes(p)};
  }

  // All kinds of one head.
  static void fill(const PositionBias& p, float* memory, int head) {
    const int wide = lanes(p);
    float* first = memory + per_head(p) * head;  // of kind 0: the bias alone until the other kinds have read it
    gather(p, first, head);
    for (int kind = p.kinds - 1; kind >= 0; kind--) {
      float* tiles = memory + per_head(p) * (kind * p.heads + head);
      const int32_t* region = p.patterns ? p.patterns + (size_t)kind * p.keys : nullptr;
      for (int j = 0; j < p.keys; j++) {
        float* row = tiles + (size_t)j * wide;
        if (kind > 0) memcpy(row, first + (size_t)j * wide, sizeof(float) * wide);
        for (int i = 0; region && i < p.queries; i++) row[i] += region[i] != region[j] ? p.penalty : 0.0f;
      }
      float* top = tiles + tile(p);
      exponentiate(p.keys, wide, tiles, top, top + wide, top + 2 * wide);
    }
  }

 private:
  static void gather(const PositionBias& p, float* tiles, int head) {
    memset(tiles, 0, sizeof(float) * tile(p));
    for (int j = 0; j < p.keys; j++) {
      float* row = tiles + (size_t)j * lanes(p);
      p.each_query(head, j, [=](int i, size_t entry) { row[i] = p.bias[entry]; });
    }
  }
};

// Sums of one chunk for the gradient of the bias: per head [key][query], then sum of U per kind and head [query].
struct BiasSums {
  static size_t size(const PositionBias& p) {
    return PreparedBias::tile(p) * p.heads + (p.masked ? (size_t)PreparedBias::lanes(p) * p.heads * p.kinds : 0);
  }
  static float* visible(const PositionBias& p, float* sums, int head) { return sums + PreparedBias::tile(p) * head; }
  static float* masked(const PositionBias& p, float* sums, int kind, int head) {
    return sums + PreparedBias::tile(p) * p.heads + (size_t)PreparedBias::lanes(p) * (kind * p.heads + head);
  }

  // total: the sums of all chunks. grad: as the bias, zeroed
  static void finish(const PreparedBias& prepared, float* total, float* grad, int head) {
    const PositionBias& p = prepared.p;
    const int lanes = PreparedBias::lanes(p);
    float* entries = visible(p, total, head);
    for (int kind = 0; p.masked && kind < p.kinds; kind++) {
      const float *exp_bias = prepared.at(kind, head).exp_bias, *u = masked(p, total, kind, head);
      for (int j = 0; j < p.keys; j++)
        for (int l = 0; l < lanes; l += LANES) {
          float* entry = entries + (size_t)j * lanes + l;
          store(entry, load(entry) + load(exp_bias + (size_t)j * lanes + l) * load(u + l));
        }
    }
    for (int j = 0; j < p.keys; j++)
      p.each_query(head, j, [=](int i, size_t entry) { grad[entry] += entries[(size_t)j * lanes + i]; });
  }
};

}  // namespace
}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
