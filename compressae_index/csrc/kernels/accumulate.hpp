// Adds postings to the scores of a window.
//
// A product of a posting's value, 8 bits, and its list's weight, 16 bits in steps of 1 / 128, is rounded to whole
// steps: (value * weight + 64) >> 7. Sums of 16 bits do not overflow: weights are scaled so that no document's
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
    const std::int32_t product = (list.values[i] * list.weight + 64) >> 7;
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
struct Products {
  std::int16_t weight;
  alignas(64) std::int16_t of[kMany];

  void many(const std::int8_t* values) {
    if constexpr (kInt16s <= kMany) {
      for (std::size_t i = 0; i < kMany; i += kInt16s) store(of + i, multiply_rounded(upper_bytes(values + i), weight));
    } else {
      for (std::size_t i = 0; i < kMany; i += kFew)
        store(of + i, multiply_rounded(upper_bytes(load<std::uint64_t>(values + i)), weight));
    }
  }

  void few(const std::int8_t* values, std::size_t left_out) {
    const std::uint64_t kept = ~std::uint64_t{0} << 8 * left_out;
    store(of, multiply_rounded(upper_bytes(load<std::uint64_t>(values) & kept), weight));
  }
};

inline void accumulate_list(const Postings& list, std::int16_t* scores) {
  if (list.count < kFew) {
    plain::accumulate_list(list, 0, scores);
    return;
  }
  Products products{list.weight, {}};
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
