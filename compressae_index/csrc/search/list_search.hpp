// Stage one: the candidates of each query by posting lists, window after window.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "base/thread_pool.hpp"
#include "base/top_k.hpp"
#include "lists/inverted.hpp"
#include "lists/scan.hpp"
#include "lists/selection.hpp"
#include "lists/terms.hpp"
#include "search/parts.hpp"

namespace compressae {

// The scans of a batch of queries, and their hits so far.
class ListSearch {
 public:
  // damped: whether documents are candidates by what is read of them (damping_of); else they are the best by sums.
  ListSearch(const Scope& scope, const float* projections, std::size_t n_queries, std::size_t query_nnz,
             std::size_t candidates, std::size_t num_threads, bool damped)
      : scope_(scope),
        windows_(scope.windows()),
        n_latents_(scope.parts.empty() ? 0 : scope.parts.front().inverted->n_latents),
        candidates_(candidates),
        terms_(n_queries),
        scales_(n_queries),
        found_(n_queries) {
    float largest_norm = 0.0f;
    Lengths::Range norms;
    for (const Part& part : scope.parts) {
      largest_norm = std::max(largest_norm, part.inverted->largest_norm);
      if (scope.n_entries > n_latents_) norms.include(part.forward->lengths().range());
    }
    ThreadPool::instance().parallel_for(n_queries, num_threads, [&](std::size_t q) {
      const float* projection = projections + q * scope.n_entries;
      terms_[q] = largest_terms(projection, n_latents_, query_nnz);
      const float weight = scope.n_entries > n_latents_ ? projection[n_latents_] : 0.0f;
      const float damping = damped ? damping_of(terms_[q], projection, n_latents_) : 0.0f;
      scales_[q] = norms.differ() ? scale_by_distance(terms_[q], largest_norm, norms, weight, damping)
                                  : scale_by_sums(terms_[q], largest_norm, norms, weight, damping);
    });
    by_distance_ = norms.differ();
  }

  std::size_t n_windows() const { return windows_.size(); }

  std::size_t n_latents() const { return n_latents_; }

  const std::vector<Term>& terms(std::size_t q) const { return terms_[q]; }

  const Scale& scale(std::size_t q) const { return scales_[q]; }

  // Scans windows begin ... end for a query.
  void scan(std::size_t q, std::size_t begin, std::size_t end) {
    thread_local WindowScan window_scan;
    thread_local CandidateSelection selection;
    for (const Attempt& attempt : attempts(begin, end)) {
      selection.begin(candidates_, attempt.floor);
      for (std::size_t i = begin; i < end; ++i) {
        const Part* part = windows_[i].part;
        if (i == begin || part != windows_[i - 1].part) window_scan.begin(*part->inverted, terms_[q], scales_[q]);
        scan_window(q, windows_[i], i == begin ? attempt.first_wanted : 0, window_scan, selection);
      }
      if (selection.best().size() >= candidates_) break;
    }
    const std::span<const Candidate> best = selection.best();
    const std::lock_guard lock(mutex_);
    found_[q].emplace_back(best.begin(), best.end());
  }

  // The best of all that was scanned for a query, by ascending row.
  std::vector<Candidate> candidates(std::size_t q) {
    std::vector<std::vector<Candidate>> shares = std::move(found_[q]);
    std::erase_if(shares, [](const std::vector<Candidate>& share) { return share.empty(); });
    std::sort(shares.begin(), shares.end(), [](const auto& a, const auto& b) { return a.front().row < b.front().row; });
    std::vector<Candidate> found;
    for (const std::vector<Candidate>& share : shares) found.insert(found.end(), share.begin(), share.end());
    keep_best_in_order(found, candidates_);
    return found;
  }

 private:
  // Candidates score above `floor`, and above all but the best `first_wanted` of the first window, unless that is 0.
  struct Attempt {
    std::size_t first_wanted;
    std::int16_t floor;
  };

  // Below every score but the lowest, which none is.
  static constexpr std::int16_t kNoFloor = -32768;

  // The attempts in windows begin ... end, one after the other until there are enough candidates.
  std::vector<Attempt> attempts(std::size_t begin, std::size_t end) const {
    // Documents that score 0, as all do that are in no list of the query, or less are wanted only where there are few
    // others. Where few lists are scanned, most documents are such: to take them up would take longer than the rest.
    // Among scores by distance, 0 means nothing.
    std::vector<Attempt> all{{0, 0}, {0, kNoFloor}};
    if (by_distance_) all.erase(all.begin());
    const std::int16_t floor = all.front().floor;
    // That the first window holds hardly more than its share of the candidates is tried before: then few documents are
    // taken up that others push out later.
    const double share = static_cast<double>(candidates_) / static_cast<double>(end - begin);
    const double wanted = std::min(share + 4.0 * std::sqrt(share) + 8.0, static_cast<double>(candidates_));
    const bool is_full = begin < end && windows_[begin].last() - windows_[begin].first() == kWindow;
    if (scope_.allowed.all() && is_full && wanted <= kMostWanted)
      all.insert(all.begin(), Attempt{static_cast<std::size_t>(wanted), floor});
    return all;
  }

  void scan_window(std::size_t q, const Window& window, std::size_t first_wanted, WindowScan& scan,
                   CandidateSelection& selection) const {
    Allowed allowed = window.part->allowed;
    if (!allowed.all()) allowed.bitmap += window.first() / 8;
    const Scale& scale = scales_[q];
    scan.add(window.number);
    if (scale.by_distance)
      scan.lengthen(window.part->forward->lengths(), window.first(), window.last(), scale.lengthening);
    // Nearly every document of the first window would enter, and most would leave again.
    if (first_wanted != 0) selection.raise(scan.threshold(first_wanted, selection.threshold()));
    const auto first_row = static_cast<std::int64_t>(window.part->first_row + window.first());
    scan.take(window.last() - window.first(), allowed, first_row, selection);
  }

  const Scope& scope_;
  std::vector<Window> windows_;
  std::size_t n_latents_;
  bool by_distance_ = false;
  std::size_t candidates_;
  std::vector<std::vector<Term>> terms_;
  std::vector<Scale> scales_;
  std::mutex mutex_;
  std::vector<std::vector<std::vector<Candidate>>> found_;  // of each query, by share
};

}  // namespace compressae
