// Selection of the best-scored documents.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

namespace compressae {

template <typename Score>
struct ScoredRow {
  Score score;
  std::int64_t row;
};

using Hit = ScoredRow<float>;

// Higher score first; a tie goes to the lower row.
struct Better {
  template <typename Score>
  bool operator()(const ScoredRow<Score>& a, const ScoredRow<Score>& b) const {
    return a.score > b.score || (a.score == b.score && a.row < b.row);
  }
};

// Of several times `top` rows, leaves the best and few more, in their order. What scores below the largest of `top`
// groups is not among the best; to find that costs less than to move all rows around.
template <typename Score>
void thin_out(std::vector<ScoredRow<Score>>& rows, std::size_t top) {
  const std::size_t n_groups = rows.size() / 4;
  if (n_groups < top) return;
  std::vector<Score> largest(n_groups, std::numeric_limits<Score>::lowest());
  for (std::size_t first = 0; first < rows.size(); first += n_groups)
    for (std::size_t i = 0; i < std::min(n_groups, rows.size() - first); ++i)
      largest[i] = std::max(largest[i], rows[first + i].score);
  const auto last = largest.begin() + static_cast<std::ptrdiff_t>(top - 1);
  std::nth_element(largest.begin(), last, largest.end(), std::greater<Score>());
  const Score least = *last;
  std::size_t kept = 0;
  for (const ScoredRow<Score>& row : rows) {
    rows[kept] = row;
    kept += !(row.score < least);
  }
  rows.resize(kept);
}

// Leaves the `top` best, in any order.
template <typename Score>
void keep_best(std::vector<ScoredRow<Score>>& rows, std::size_t top) {
  if (rows.size() <= top) return;
  thin_out(rows, top);
  std::nth_element(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(top), rows.end(), Better());
  rows.resize(top);
}

// The same in their order, which rows ascend in.
template <typename Score>
void keep_best_in_order(std::vector<ScoredRow<Score>>& rows, std::size_t top) {
  if (rows.size() <= top) return;
  thin_out(rows, top);
  std::vector<Score> scores;
  for (const ScoredRow<Score>& row : rows) scores.push_back(row.score);
  const auto last = scores.begin() + static_cast<std::ptrdiff_t>(top - 1);
  std::nth_element(scores.begin(), last, scores.end(), std::greater<Score>());
  const Score least = *last;
  auto ties = 1 + std::count(scores.begin(), last, least);
  std::size_t kept = 0;
  for (const ScoredRow<Score>& row : rows) {
    rows[kept] = row;
    const bool is_tie = row.score == least;
    kept += row.score > least || (is_tie && ties > 0);
    ties -= is_tie && ties > 0;
  }
  rows.resize(kept);
}

// Sorts by descending score and leaves ties in their order: by digits, as comparisons of many hits mispredict.
inline void sort_by_score(std::vector<Hit>& hits) {
  constexpr unsigned kBits = 8, kDigits = 4;
  constexpr std::uint32_t kValues = 1u << kBits;
  // Ascending where scores descend.
  const auto key = [](const Hit& hit) {
    const auto bits = __builtin_bit_cast(std::uint32_t, hit.score + 0.0f);  // one zero, not two
    return bits & 0x80000000 ? bits : ~bits & 0x7fffffff;
  };
  std::vector<Hit> sorted(hits.size());
  for (unsigned digit = 0; digit < kDigits; ++digit) {
    const auto value = [&](const Hit& hit) { return key(hit) >> digit * kBits & (kValues - 1); };
    std::array<std::uint32_t, kValues> places{};
    for (const Hit& hit : hits) ++places[value(hit)];
    std::exclusive_scan(places.begin(), places.end(), places.begin(), 0u);
    for (const Hit& hit : hits) sorted[places[value(hit)]++] = hit;
    hits.swap(sorted);
  }
}

// Keeps the `top` best hits of a stream. A buffer that is cut back by nth_element whenever it is full costs
// the same whether 10 or 1,000 are asked for, where a heap would slow down with their number.
class TopK {
 public:
  explicit TopK(std::size_t top) : top_(top), capacity_(top + std::max<std::size_t>(top, 1024)) {
    hits_.reserve(capacity_);
  }

  // Only scores above this can still enter, as long as rows arrive in ascending order.
  float threshold() const { return threshold_; }

  void offer(float score, std::int64_t row) {
    if (score > threshold_) push(score, row);
  }

  void push(float score, std::int64_t row) {
    ascending_ = ascending_ && (hits_.empty() || hits_.back().row < row);
    hits_.push_back({score, row});
    if (hits_.size() == capacity_) {
      keep_best(hits_, top_);
      ascending_ = false;
      threshold_ = std::max_element(hits_.begin(), hits_.end(), Better())->score;
    }
  }

  // Takes over the hits of another, of the same or of other documents.
  void merge(const TopK& other) {
    for (const Hit& hit : other.hits_) push(hit.score, hit.row);
  }

  // The best hits, in any order.
  std::vector<Hit>& kept() {
    keep_best(hits_, top_);
    return hits_;
  }

  // Writes `top` entries, padded with row -1 and score -inf.
  void write(float* scores, std::int64_t* rows) {
    if (ascending_)
      keep_best_in_order(hits_, top_);
    else
      keep_best(hits_, top_);
    if (ascending_ && hits_.size() > kFew)
      sort_by_score(hits_);
    else
      std::sort(hits_.begin(), hits_.end(), Better());
    for (std::size_t i = 0; i < top_; ++i) {
      const bool found = i < hits_.size();
      scores[i] = found ? hits_[i].score : -std::numeric_limits<float>::infinity();
      rows[i] = found ? hits_[i].row : -1;
    }
  }

 private:
  // Hits that comparisons sort as fast as digits do.
  static constexpr std::size_t kFew = 32;

  std::size_t top_;
  std::size_t capacity_;
  bool ascending_ = true;  // rows of the hits
  std::vector<Hit> hits_;
  float threshold_ = -std::numeric_limits<float>::infinity();
};

// Places for the best of each query, (n_queries, top).
struct Results {
  float* scores;
  std::int64_t* rows;
  std::size_t top;

  void write(std::size_t q, TopK& best) const { best.write(scores + q * top, rows + q * top); }
};

}  // namespace compressae
