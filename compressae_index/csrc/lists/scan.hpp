// Posting lists scanned term at a time: the scores of a window.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
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

inline float steps_of(const std::vector<Term>& terms, float largest_norm, float damping) {
  const double bound = bound_of(terms, largest_norm) + static_cast<double>(damping) * largest_norm * largest_norm;
  // Each term's product is rounded by half a step, and a weight by half of 1 / 128 of one; so are products with a
  // damping, and this.
  const std::size_t roundings = damping > 0.0f ? 2 * terms.size() : terms.size();
  const double largest = 32000.0 - static_cast<double>(std::min<std::size_t>(roundings, 16384));
  return bound > 0.0 ? static_cast<float>(largest / bound) : 1.0f;
}

// What 16-bit scores of a query stand for.
struct Scale {
  float steps;                // of sums over lists
  float damping = 0.0f;       // of values, in their own units
  bool by_distance = false;   // whether these are lengthened
  Lengthening lengthening{};  // then it gives other steps
  float final_steps = 1.0f, middle = 0.0f;
  float shift = 0.0f, norm = 1.0f;  // where all documents have one norm

  float score_of(std::int16_t score) const {
    if (by_distance) return static_cast<float>(score) / final_steps + middle;
    return (static_cast<float>(score) / steps + shift) * norm;
  }
};

// Where documents are candidates, a product of the query's projection u and a value s counts as u s - damping * s^2. By
// u s alone, a far document whose strong latents the query reads comes before a near one whose latents it does not.
// Over the latents that are not read, the product of a near document with the query is about the square of what the
// document has there: |x|^2 less the sum of s^2 over those that are read. A share of it does best, and less the more is
// read: kDamping times the share of the squares of u that is not. |x|^2 is the same for all directions; where norms
// decide, too, kUnseen times that share of it is added, and a document's norm is taken for the query's. What that
// gains, and where it loses, is in docs/how-it-works.md.
inline constexpr float kDamping = 0.2f, kUnseen = 0.9f;

// The damping of a query (n_latents) of which these terms are read; 0 where they are all but a thousandth.
inline float damping_of(const std::vector<Term>& terms, const float* projection, std::size_t n_latents) {
  float read = 0.0f;
  for (const Term& term : terms) read += term.weight * term.weight;
  const float unread = 1.0f - read / kernels().dot(projection, projection, n_latents);
  return unread > 1e-3f ? kDamping * unread : 0.0f;
}

// Where lists hold directions, and norms are kept beside codes: a document of norm x scores (sum + weight * x / 2) * x.
// A sum is about a cosine, far below the bound of Cauchy and Schwarz where terms are many. Steps are such that
// documents of all sums up to kMostCosine are told apart, and down to those of no negative sum and a common norm, and
// twice as far below. Others count as the highest or the lowest.
inline Scale scale_by_distance(const std::vector<Term>& terms, float largest_norm, const Lengths::Range& norms,
                               float weight, float damping) {
  constexpr double kDepth = 3.0, kMostCosine = 1.5;
  const float shift = kUnseen * damping;
  const float steps = steps_of(terms, largest_norm, damping);
  const double bound = std::min(bound_of(terms, largest_norm) + static_cast<double>(shift), kMostCosine);
  const double half = 0.5 * static_cast<double>(weight);
  const auto highest_of = [&](double x) { return (bound + half * x) * x; };
  const double peak = half < 0.0 ? -bound / (2.0 * half) : static_cast<double>(norms.largest);
  const double high = highest_of(std::clamp<double>(peak, norms.smallest, norms.largest));
  const double common = half * norms.common * norms.common;
  const double range = std::max(kDepth * (high - common), 1e-30);
  const double middle = high - range / 2.0, final_steps = 2.0 * static_cast<double>(Lengthening::kMost) / range;
  return {steps,
          damping,
          true,
          {static_cast<float>(final_steps / steps), static_cast<float>(final_steps * half),
           static_cast<float>(final_steps * shift), static_cast<float>(-middle * final_steps)},
          static_cast<float>(final_steps),
          static_cast<float>(middle),
          0.0f,
          1.0f};
}

// The same where no norms are kept, or all are the same, so that sums have the order of scores.
inline Scale scale_by_sums(const std::vector<Term>& terms, float largest_norm, const Lengths::Range& norms,
                           float weight, float damping) {
  Scale scale{steps_of(terms, largest_norm, damping), damping};
  if (norms.largest > 0.0f) {
    scale.shift = 0.5f * weight * norms.largest + kUnseen * damping;
    scale.norm = norms.largest;
  }
  return scale;
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
  // Of these lists windows are added from now on, times the terms' weights in steps, and damped.
  void begin(const InvertedView& lists, const std::vector<Term>& terms, const Scale& scale) {
    const float step = 128.0f * scale.steps;
    const std::size_t n_windows = lists.n_windows();
    runs_.clear();
    for (const Term& term : terms) {
      const std::uint64_t start = lists.starts[term.latent];
      runs_.push_back({lists.ids + start, lists.values + start, lists.offsets + term.latent * (n_windows + 1),
                       lists.scales + term.latent * n_windows, step * term.weight, 128.0f * step * scale.damping});
    }
    postings_.resize(runs_.size());
  }

  // Scores that the lists add up to in a window.
  void add(std::size_t w) {
    // Offsets and scales are read window after window in a row for each term, more rows than the hardware prefetcher
    // can follow.
    if (w % kAhead == 0) {
      for (const Run& run : runs_) {
        __builtin_prefetch(run.offsets + w + 2 * kAhead);
        __builtin_prefetch(run.scales + w + 2 * kAhead);
      }
    }
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      const Run& run = runs_[i];
      const std::uint32_t first = run.offsets[w], last = run.offsets[w + 1];
      const float scale = from_half(run.scales[w]);
      postings_[i] = {run.ids + first, run.values + first, last - first, in_16_bits(run.weight * scale),
                      in_16_bits(run.damping * scale * scale)};
    }
    kernels().accumulate(postings_.data(), postings_.size(), scores_.data());
  }

  // Turns the scores of documents first ... last, of those that have the norms, into scores by distance.
  void lengthen(const Lengths& lengths, std::size_t first, std::size_t last, const Lengthening& by) {
    kernels().lengthen(lengths.norms() + first, last - first, by, scores_.data());
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
  static std::int16_t in_16_bits(float x) {
    return static_cast<std::int16_t>(std::lrintf(std::clamp(x, -32767.0f, 32767.0f)));
  }

  // A term's list from its first window on, the weight of its values, and their damping.
  struct Run {
    const std::uint16_t* ids;
    const std::int8_t* values;
    const std::uint32_t* offsets;
    const std::uint16_t* scales;
    float weight, damping;
  };

  // Windows whose offsets are fetched ahead: half a line of memory.
  static constexpr std::size_t kAhead = 8;

  std::vector<std::int16_t> scores_ = std::vector<std::int16_t>(kScores);
  std::vector<Run> runs_;
  std::vector<Postings> postings_;
};

}  // namespace compressae
