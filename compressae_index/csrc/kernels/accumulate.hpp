// Adds postings to the scores of a window.
//
// A product of a posting's value, 8 bits, and its list's weight, 16 bits in steps of 1 / 128, is rounded to whole
// steps: (value * weight + 64) >> 7. Where a list has a damping, the weight of a value is less by its product with
// this, rounded alike. Sums of 16 bits do not overflow: weights are scaled so that no document's
// products can add up to 32,768 steps (steps_of in lists/scan.hpp); a damaged file's wrap around.
#pragma once

#include "kernels/kernels.hpp"
#include "kernels/vectors.hpp"

namespace compressae {
namespace {

namespace plain {

// From posting `first` on.
inline void accumulate_list(const Postings& list, std::size_t first, std::int16_t* scores) {
  for (std::size_t i = first; i < list.count; ++i) {
    const std::int32_t value = list.values[i];
    const auto weight = static_cast<std::int16_t>(list.weight - ((value * list.damping + 64) >> 7));
    const std::int32_t product = (value * weight + 64) >> 7;
    scores[list.ids[i]] = static_cast<std::int16_t>(scores[list.ids[i]] + product);
  }
}

}  // namespace plain

#if defined(COMPRESSAE_PLAIN)

void accumulate_list(const Postings& list, std::int16_t* scores) { plain::accumulate_list(list, 0, scores); }

#else

// A list's postings for the next window follow those for this one, and are about as many. A query has more lists than
// the hardware prefetcher can follow, so they are fetched while this window's postings are added.
inline void fetch_next(const Postings& list, std::size_t at) {
  __builtin_prefetch(list.ids + list.count + at, 0, 2);
  __builtin_prefetch(list.values + list.count + at, 0, 2);
}

// Postings whose products are rounded side by side, then added one by one: their documents differ, so that no addition
// waits for another. That goes by kMany, by kFew, and at last once more by kFew, products that were added before set
// to 0: a loop over what is left would mispredict its end, and most lists are short in a window. So a larger kMany, of
// which AVX-512 could round the products at once, is slower: more is left.
constexpr std::size_t kMany = 16;
constexpr std::size_t kFew = 8;

// A value moved up by 8 bits makes the one rounding multiplication that there is, (x * y + (1 << 14)) >> 15, ours:
// ((value << 8) * weight + (1 << 14)) >> 15 = (value * weight + 64) >> 7.
template <bool kDamped>
struct Products {
  std::int16_t weight, damping;
  alignas(64) std::int16_t of[kMany];

  template <typename V>
  V weighted(V values) const {
    const V weights = V{} + weight;
    if constexpr (!kDamped) return multiply_rounded(values, weights);
    return multiply_rounded(values, weights - multiply_rounded(values, V{} + damping));
  }

  void many(const std::int8_t* values) {
    if constexpr (kInt16s <= kMany) {
      for (std::size_t i = 0; i < kMany; i += kInt16s) store(of + i, weighted(upper_bytes(values + i)));
    } else {
      for (std::size_t i = 0; i < kMany; i += kFew)
        store(of + i, weighted(upper_bytes(load<std::uint64_t>(values + i))));
    }
  }

  void few(const std::int8_t* values, std::size_t left_out) {
    const std::uint64_t kept = ~std::uint64_t{0} << 8 * left_out;
    store(of, weighted(upper_bytes(load<std::uint64_t>(values) & kept)));
  }
};

template <bool kDamped>
inline void accumulate_list(const Postings& list, std::int16_t* scores) {
  if (list.count < kFew) {
    plain::accumulate_list(list, 0, scores);
    return;
  }
  Products<kDamped> products{list.weight, list.damping, {}};
  const auto add = [&](std::size_t at, std::size_t j) {
    std::int16_t& score = scores[list.ids[at + j]];
    score = static_cast<std::int16_t>(score + products.of[j]);
  };
  std::size_t i = 0;
  for (; i + kMany <= list.count; i += kMany) {
    fetch_next(list, i + 32);
    products.many(list.values + i);
#pragma GCC unroll 16
    for (std::size_t j = 0; j < kMany; ++j) add(i, j);
  }
  if (i < list.count) fetch_next(list, i + 32);
  while (i < list.count) {
    const std::size_t at = i + kFew <= list.count ? i : list.count - kFew;
    products.few(list.values + at, i - at);
#pragma GCC unroll 8
    for (std::size_t j = 0; j < kFew; ++j) add(at, j);
    i = at + kFew;
  }
}

inline void accumulate_list(const Postings& list, std::int16_t* scores) {
  if (list.damping != 0)
    accumulate_list<true>(list, scores);
  else
    accumulate_list<false>(list, scores);
}

#endif

void accumulate(const Postings* lists, std::size_t n_lists, std::int16_t* scores) {
  for (std::size_t i = 0; i < n_lists; ++i) {
    if (i + 1 < n_lists) {
      __builtin_prefetch(lists[i + 1].ids);
      __builtin_prefetch(lists[i + 1].ids + 32);
      __builtin_prefetch(lists[i + 1].values);
    }
    accumulate_list(lists[i], scores);
  }
}

}  // namespace
}  // namespace compressae
