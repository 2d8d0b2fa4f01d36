// One window and head of attention: softmax and its gradient on tiles, shared by window_attention and swin_block.
//
// A tile is [key][query] with queries in the SIMD lanes. All masked tokens of the window are ONE shared key, the last
// row, as they have the same k and v. Only `weight`, the sum of exp(bias) over them, depends on their number and
// positions.
#pragma once
#include "position_bias.h"
#include "product.h"
#include "scratch.h"
#include "table.h"

namespace masked_swin {
namespace MASKED_SWIN_ISA {
namespace {

constexpr float NO_KEY = -1e29f;  // a query whose highest score is below has no key, and its output is 0

// The visible queries of one vector, and how many visible ones lie in the vectors before.
struct VisibleLanes {
  LaneSet lanes;
  int before;
};

// Moves the visible queries and keys between tiles of the window (full) and tiles where they are adjacent (compact).
struct Compaction {
  const VisibleLanes* visible_lanes;
  const int* position;    // of each in the window
  int count;              // at least 1
  int full_lanes, lanes;  // strides of both tiles

  // compact[i] = full[position[i]]; 0 in lanes without a query. Writes up to LANES values past them.
  INLINE void gather_row(const float* full, float* compact) const {
    store(compact + last(), Vec{});
    for (int l = 0; l < full_lanes; l += LANES) {
      const VisibleLanes& g = visible_lanes[l / LANES];
      g.lanes.compress(compact + g.before, load(full + l));
    }
  }
  // compact[j][i] = full[position[j]][position[i]]. Lanes without a query hold 1 for the first key, so that no sum of
  // exponentials is 0.
  __attribute__((noinline)) void gather(const float* full, float* compact) const {
    for (int j = 0; j < count; j++) gather_row(full + (size_t)position[j] * full_lanes, compact + (size_t)j * lanes);
    store(compact + last(), LaneSet((1u << (count - last())) - 1).expand(compact + last(), splat(1.0f)));
  }
  // full[position[j]][position[i]] += compact[j][i]
  __attribute__((noinline)) void scatter_add(const float* compact, float* full) const {
    for (int j = 0; j < count; j++, compact += lanes)
      for (int l = 0; l < full_lanes; l += LANES) {
        const VisibleLanes& g = visible_lanes[l / LANES];
        float* to = full + (size_t)position[j] * full_lanes + l;
        store(to, load(to) + g.lanes.expand(compact + g.before, Vec{}));
      }
  }

 private:
  int last() const { return round_up(count) - LANES; }
};

struct Tile {
  int lanes;        // stride of a row
  int width;        // lanes in use
  int keys;         // visible keys, the first rows
  int all_keys;     // of the window
  bool shared_key;  // row `keys` is the key of all masked tokens
  float scale;
  const int* position;  // visible key -> its row of the bias
  const unsigned char* visible;
  // Shared query: masked queries have equal products q.k. `qk` then holds those of the visible queries, adjacent, and
  // of one query for all masked ones. Null: `qk` holds those of every query.
  const VisibleLanes* shared_query = nullptr;

  int rows() const { return keys + shared_key; }
  bool any_masked() const { return shared_key && keys < all_keys; }
  int qk_queries() const { return shared_query ? keys + 1 : width; }

  // The values of `qk` for the queries in the lanes from l on.
  Vec expand_qk(const float* qk, int l) const {
    if (!shared_query) return load(qk + l);
    const VisibleLanes& g = shared_query[l / LANES];
    return g.lanes.expand(qk + g.before, splat(qk[keys]));
  }
  // The reverse for gradients: adds up those of masked queries.
  __attribute__((noinline)) void reduce_qk(const float* tile, float* qk) const {
    for (int j = 0; j < rows(); j++, tile += lanes, qk += lanes) {
      Vec rest = {};
      for (int l = 0; l < width; l += LANES) {
        const VisibleLanes& g = shared_query[l / LANES];
        rest += g.lanes.compress(qk + g.before, load(tile + l));
      }
      qk[keys] = sum(rest);
    }
  }

  // Whether the masked keys' share of the sum of all exp(bias) is large enough to be computed as a difference.
  bool mostly_masked(const BiasTile& b, Vec share, int l) const {
    return all_above(share, load(b.exp_total + l) * 0.1f);
  }

  // Sum over the masked keys of exp(bias - top).
  Vec masked_weight(const BiasTile& b, int l) const {
    Vec sum[2] = {};
    int parity = 0;
    for (int j = 0; j < all_keys; j++)
      if (!visible[j]) sum[parity ^= 1] += load(b.exp_bias + (size_t)j * lanes + l);
    return sum[0] + sum[1];
  }

  // Computes the same as `softmax` below, but faster: exp(q.k - maximum) exp(bias) needs neither the bias nor the
  // masked keys' rows. Overwrites qk. Returns false if a sum is too small to be exact or a query may have no key; the
  // caller then computes qk again and calls `softmax`.
  __attribute__((noinline)) bool factored_softmax(const BiasTile& b, float* qk, float* score, float* inverse,
                                                  float* shared, float* weight) const {
    constexpr float SAFE = 1e-3f;  // the largest exponents are then small, and so is their rounding error
    const int used = keys + any_masked();
    for (int l = 0; l < qk_queries(); l += LANES) {
      Vec highest = splat(EXCLUDED);
      for (int j = 0; j < used; j++) highest = max(highest, load(qk + (size_t)j * lanes + l) * scale);
      for (int j = 0; j < used; j++) {
        float* s = qk + (size_t)j * lanes + l;
        store(s, exp(load(s) * scale - highest));
      }
      if (used < rows()) store(qk + (size_t)keys * lanes + l, Vec{});
    }
    for (int l = 0; l < width; l += LANES) {
      if (!all_above(load(b.top + l), splat(NO_KEY))) return false;  // some query may see no key at all
      Vec total = {}, seen = {};
      for (int j = 0; j < keys; j++) {
        const Vec exp_bias = load(b.exp_bias + (size_t)position[j] * lanes + l);
        const Vec e = expand_qk(qk + (size_t)j * lanes, l) * exp_bias;
        store(score + (size_t)j * lanes + l, e);
        total += e;
        seen += exp_bias;
      }
      if (shared_key) {
        const Vec common = expand_qk(qk + (size_t)keys * lanes, l), rest = load(b.exp_total + l) - seen;
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

  // Makes `score`, the unnormalised exponentials, of `qk`, the products q.k; the two may be one buffer. Makes for each
  // query: `inverse`, the inverse sum of its exponentials; `shared` = exp(scale q.k + top - maximum) of the shared key;
  // and `weight`, the sum of exp(bias - top) over the masked keys. Row `keys` of score is shared * weight.
  __attribute__((noinline)) void softmax(const BiasTile& b, const float* qk, float* score, float* inverse,
                                         float* shared, float* weight) const {
    for (int l = 0; l < width; l += LANES) {
      Vec highest = splat(EXCLUDED);
      for (int j = 0; j < keys; j++) {
        const Vec v = expand_qk(qk + (size_t)j * lanes, l) * scale + load(b.bias + (size_t)position[j] * lanes + l);
        store(score + (size_t)j * lanes + l, v);
        highest = max(highest, v);
      }
      Vec exponent = {}, sum = {};
      if (any_masked())
        highest = max(highest, exponent = expand_qk(qk + (size_t)keys * lanes, l) * scale + load(b.top + l));
      for (int j = 0; j < keys; j++) {
        float* s = score + (size_t)j * lanes + l;
        const Vec e = exp(load(s) - highest);
        store(s, e);
        sum += e;
      }
      if (shared_key) {
        const Vec factor = any_masked() ? exp(exponent - highest) : Vec{}, w = masked_weight(b, l);
        store(shared + l, factor);
        store(weight + l, w);
        store(score + (size_t)keys * lanes + l, factor * w);
        sum += factor * w;
      }
      store(inverse + l, highest < NO_KEY ? Vec{} : 1.0f / sum);
    }
  }

  // `score` holds the exponentials e. `d_score` holds (gradient of the output / sum of e) . v and becomes the gradient
  // of the scores. The gradient of the bias is added to d_bias [key][query]: ds for a visible key, exp_bias * U for a
  // masked one, where U is the gradient of `weight`. If most keys are masked, U is added to sum_u: in the end every key
  // gets exp_bias * sum_u, and so the visible keys lose exp_bias * U here.
  __attribute__((noinline)) void softmax_backward(const BiasTile& b, const float* score, float* d_score,
                                                  const float* inverse, const float* shared, const float* weight,
                                                  float* d_bias, float* sum_u) const {
    for (int l = 0; l < width; l += LANES) {
      Vec dots[2] = {};
      for (int j = 0; j < rows(); j++)
        dots[j & 1] += load(score + (size_t)j * lanes + l) * load(d_score + (size_t)j * lanes + l);
      const Vec dot = (dots[0] + dots[1]) * load(inverse + l);  // sum_j p_ij dp_ij / sum of e
      Vec u = {};
      if (shared_key) {
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
        const size_t entry = (size_t)position[j] * lanes + l;
        Vec total = load(d_bias + entry) + ds;
        if (shared_key) total -= load(b.exp_bias + entry) * u;
        store(d_bias + entry, total);
      }
    }
  }
};

}  // namespace
}  // namespace MASKED_SWIN_ISA
}  // namespace masked_swin
