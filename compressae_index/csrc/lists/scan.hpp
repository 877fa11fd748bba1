// Posting lists scanned term at a time: the scores of a window.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "base/allowed.hpp"
#include "base/lengths.hpp"
#include "kernels/dispatch.hpp"
#include "lists/inverted.hpp"
#include "lists/selection.hpp"
#include "lists/terms.hpp"

namespace compressae {

// 16-bit steps of a score, so that no sum over the terms' lists can overflow. By Cauchy and Schwarz such a sum is at
// most the product of the norms of the terms' weights and of a document's postings, and it is at most the sum of what
// each list could add.
inline double bound_of(const std::vector<Term>& terms, float largest_norm) {
  double squares = 0.0;
  for (const Term& term : terms) squares += static_cast<double>(term.weight) * term.weight;
  return std::sqrt(squares) * largest_norm;
}

// The same for sums that begin at up to `height`.
inline float steps_of(const std::vector<Term>& terms, float largest_norm, double height = 0.0) {
  const double bound = bound_of(terms, largest_norm) + height;
  // Each term's product is rounded by half a step, and a weight by half of 1 / 128 of one.
  const double largest = 32000.0 - static_cast<double>(std::min<std::size_t>(terms.size(), 16384));
  return bound > 0.0 ? static_cast<float>(largest / bound) : 1.0f;
}

// Half the squares of the norms of all documents of a search, from the smallest to the largest.
struct Heights {
  float smallest = std::numeric_limits<float>::infinity(), largest = 0.0f;

  void include(const Lengths& lengths) {
    smallest = std::min(smallest, lengths.smallest());
    largest = std::max(largest, lengths.largest());
  }
  // If they do not, they change no order.
  bool differ() const { return smallest < largest; }
};

// Where the scores of documents begin: (half the square of the norm - base) * factor, in steps, up to `most`.
struct Start {
  float base = 0.0f, factor = 0.0f, most = 0.0f;
};

// The steps of a query, and where its scores begin.
struct Scale {
  float steps;
  Start start;
};

// by_length: the factor of half the squares of norms. Few documents are so much longer than others that their
// distance from a query is large whatever their direction; they take no digits from the others.
inline Scale scale_of(const std::vector<Term>& terms, float largest_norm, const Heights& heights, float by_length) {
  constexpr double kHighest = 8.0;
  const double bound = bound_of(terms, largest_norm);
  const double range = std::abs(static_cast<double>(by_length)) * (heights.largest - heights.smallest);
  const double height = bound > 0.0 ? std::min(range, kHighest * bound) : range;
  const float steps = steps_of(terms, largest_norm, height);
  return {steps, {heights.smallest, by_length * steps, static_cast<float>(height * steps)}};
}

// The most that threshold_of can be asked for.
inline constexpr std::size_t kMostWanted = 2048;

// A threshold that at least `wanted` of a window's scores exceed, where that many exceed `floor`, and few more: the
// largest scores of groups of 8 take their place, which are counted in a fraction of the time.
inline std::int16_t threshold_of(const std::int16_t* scores, std::size_t wanted, std::int16_t floor) {
  std::array<std::int16_t, 2 * kMostWanted> largest;
  kernels().group_maxima(scores, kWindow, largest.size(), largest.data());
  std::int32_t low = floor, high = 32767;
  while (high - low > 16) {
    const std::int32_t middle = (low + high + 1) / 2;
    if (kernels().count_above(largest.data(), largest.size(), static_cast<std::int16_t>(middle)) >= wanted)
      low = middle;
    else
      high = middle - 1;
  }
  return static_cast<std::int16_t>(low);
}

// Where the 16-bit scores of a window are added up and taken from. One serves after the other, in one thread.
class WindowScan {
 public:
  // Begins a window: its documents are first ... last of those that have the norms.
  void start(const Lengths& lengths, std::size_t first, std::size_t last, const Start& start) {
    kernels().starts(lengths.norms() + first, last - first, start.base, start.factor, start.most, scores_.data());
  }

  // Scores that the lists add up to in a window.
  void add(const InvertedView& lists, std::size_t w, const std::vector<Term>& terms, float steps) {
    postings_.clear();
    for (const Term& term : terms) {
      const ListWindow list = lists.window(term.latent, w);
      const float weight = std::clamp(128.0f * steps * term.weight * list.scale, -32767.0f, 32767.0f);
      postings_.push_back({list.ids, list.values, list.count, static_cast<std::int16_t>(std::lrintf(weight))});
    }
    kernels().accumulate(postings_.data(), postings_.size(), scores_.data());
  }

  // A threshold that at least `wanted` of the scores of a whole window exceed.
  std::int16_t threshold(std::size_t wanted, std::int16_t floor) const {
    return threshold_of(scores_.data(), wanted, floor);
  }

  // Offers the `count` documents of a window, and sets all scores to 0. A document in no list scores 0.
  void take(std::size_t count, const Allowed& allowed, std::int64_t first_row, CandidateSelection& selection) {
    std::uint16_t positions[kHits + kHitSlack];
    std::int16_t hits[kHits + kHitSlack];
    for (std::size_t at = 0; at < count;) {
      const std::size_t n_hits =
          kernels().harvest(scores_.data(), at, count, selection.threshold(), allowed.bitmap, positions, hits);
      selection.push(hits, positions, n_hits, first_row);
    }
    // A damaged file may have scored documents that are not there.
    std::fill(scores_.begin() + static_cast<std::ptrdiff_t>(count), scores_.begin() + kWindow, std::int16_t{0});
  }

 private:
  std::vector<std::int16_t> scores_ = std::vector<std::int16_t>(kScores);
  std::vector<Postings> postings_;
};

}  // namespace compressae
