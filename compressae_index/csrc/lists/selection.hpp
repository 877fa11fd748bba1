// Selection of candidates by the 16-bit scores of posting lists.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/top_k.hpp"

namespace compressae {

using Candidate = ScoredRow<std::int16_t>;

// Keeps the `top` best candidates of a stream, as TopK does hits. Scores of 16 bits can be counted: the threshold rises
// with every few candidates, so that fewer are kept, and nothing is sorted on the way.
class CandidateSelection {
 public:
  // Candidates score above `floor`.
  void begin(std::size_t top, std::int16_t floor) {
    top_ = top;
    size_ = 0;
    above_ = 0;
    raise(floor);
    std::fill(counts_.begin(), counts_.end(), 0u);
  }

  // Only scores above this can still enter, as long as rows arrive in ascending order.
  std::int16_t threshold() const { return threshold_; }

  // Gives up what scores no more than this, before anything was pushed.
  void raise(std::int16_t threshold) {
    threshold_ = threshold;
    least_ = threshold + 1;
    bucket_ = bucket_of(threshold);
  }

  void push(const std::int16_t* scores, const std::uint16_t* positions, std::size_t count, std::int64_t first_row) {
    if (candidates_.size() < size_ + count) candidates_.resize(2 * (size_ + count));
    for (std::size_t i = 0; i < count; ++i) {
      candidates_[size_ + i] = {scores[i], first_row + positions[i]};
      ++counts_[bucket_of(scores[i])];
    }
    size_ += count;
    above_ += count;
    // Whole buckets are given up while as many as are wanted lie above.
    while (above_ - counts_[bucket_] >= top_) {
      above_ -= counts_[bucket_++];
      least_ = lowest_of(bucket_);
      threshold_ = static_cast<std::int16_t>(least_ - 1);
    }
    // Keeps the buffer small where rows come in ascending order of their scores, or most of them score the same: those
    // in no list of a query do.
    if (size_ > 8 * top_ + kSpare) cut();
  }

  // The `top` best so far, in the order of pushing.
  std::span<const Candidate> best() {
    cut();
    return {candidates_.data(), size_};
  }

 private:
  // Scores are counted in buckets of 8: few enough for the first-level cache, and fine enough.
  static constexpr std::int32_t kBucket = 8;
  // Candidates beyond several times `top` that may be held.
  static constexpr std::size_t kSpare = 4096;

  static std::size_t bucket_of(std::int16_t score) {
    return static_cast<std::size_t>((static_cast<std::int32_t>(score) + 32768) / kBucket);
  }
  static std::int32_t lowest_of(std::size_t bucket) { return static_cast<std::int32_t>(bucket) * kBucket - 32768; }

  // Gives up all but the `top` best; of ties, those that came first stay.
  void cut() {
    keep([this](std::int16_t score) { return score >= least_; });
    if (size_ <= top_) return;
    // The surplus is in the lowest bucket.
    const std::int32_t lowest = lowest_of(bucket_);
    std::size_t counts[kBucket + 1] = {};
    for (std::size_t i = 0; i < size_; ++i) ++counts[std::min<std::int32_t>(candidates_[i].score - lowest, kBucket)];
    std::size_t kept = size_, at = 0;
    while (kept - counts[at] >= top_) kept -= counts[at++];
    const std::int32_t least = lowest + static_cast<std::int32_t>(at);
    std::size_t ties = top_ - (kept - counts[at]);
    counts_[bucket_] -= static_cast<std::uint32_t>(size_ - top_);
    above_ = top_;
    keep([least, &ties](std::int16_t score) {
      const bool is_tie = score == least;
      const bool stays = score > least || (is_tie && ties > 0);
      ties -= is_tie && ties > 0;
      return stays;
    });
    least_ = least;
    threshold_ = static_cast<std::int16_t>(least);
  }

  // Without a branch for each: which ones stay cannot be foreseen.
  template <typename Stays>
  void keep(Stays stays) {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < size_; ++i) {
      candidates_[kept] = candidates_[i];
      kept += stays(candidates_[i].score);
    }
    size_ = kept;
  }

  std::size_t top_ = 0;
  std::size_t size_ = 0;
  std::size_t bucket_ = 0;  // the lowest that candidates may still be in
  std::size_t above_ = 0;   // candidates in this bucket and above
  std::int16_t threshold_ = 0;
  std::int32_t least_ = 0;             // candidates below are given up
  std::vector<Candidate> candidates_;  // the first size_
  std::vector<std::uint32_t> counts_ = std::vector<std::uint32_t>(65536 / kBucket);
};

}  // namespace compressae
