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
#include "lists/clusters.hpp"
#include "lists/inverted.hpp"
#include "lists/scan.hpp"
#include "lists/selection.hpp"
#include "lists/terms.hpp"
#include "search/parts.hpp"

namespace compressae {

// The scans of a batch of queries, and their hits so far.
class ListSearch {
 public:
  // wanted: documents of each query that are found whatever clusters are left out, as far as there are so many.
  ListSearch(const Scope& scope, const float* projections, std::size_t n_queries, std::size_t query_nnz,
             std::size_t candidates, std::size_t wanted, std::size_t num_threads)
      : scope_(scope),
        windows_(scope.windows()),
        candidates_(candidates),
        wanted_(wanted),
        terms_(n_queries),
        steps_(n_queries),
        found_(n_queries) {
    float largest_norm = 0.0f;
    for (const Part& part : scope.parts) largest_norm = std::max(largest_norm, part.inverted->largest_norm);
    ThreadPool::instance().parallel_for(n_queries, num_threads, [&](std::size_t q) {
      terms_[q] = largest_terms(projections + q * scope.n_latents, scope.n_latents, query_nnz);
      steps_[q] = steps_of(terms_[q], largest_norm);
    });
  }

  // How many ways a query's work may be shared: by windows, unless it is for few of them.
  std::size_t n_shares() const { return scope_.is_probed() ? 1 : windows_.size(); }

  const std::vector<Term>& terms(std::size_t q) const { return terms_[q]; }

  float steps(std::size_t q) const { return steps_[q]; }

  // Scans a query's shares begin ... end.
  void scan(std::size_t q, std::size_t begin, std::size_t end) {
    thread_local WindowScan window_scan;
    thread_local CandidateSelection selection;
    for (const Attempt& attempt : scope_.is_probed() ? probing(q) : attempts(begin, end)) {
      selection.begin(candidates_, attempt.floor);
      for (std::size_t i = 0; i < attempt.visits.size(); ++i)
        scan_window(q, attempt.visits[i], i == 0 ? attempt.first_wanted : 0, window_scan, selection);
      if (selection.best().size() >= attempt.enough) break;
    }
    // A damaged file may have scored documents of clusters that were left out.
    if (scope_.is_probed()) window_scan.clear();
    const std::span<const Candidate> best = selection.best();
    const std::lock_guard lock(mutex_);
    found_[q].emplace_back(best.begin(), best.end());
  }

  // The best of all that was scanned for a query, by ascending row.
  std::vector<Candidate> candidates(std::size_t q) {
    const auto by_row = [](const Candidate& a, const Candidate& b) { return a.row < b.row; };
    std::vector<std::vector<Candidate>> shares = std::move(found_[q]);
    std::erase_if(shares, [](const std::vector<Candidate>& share) { return share.empty(); });
    std::sort(shares.begin(), shares.end(), [&](const auto& a, const auto& b) { return by_row(a.front(), b.front()); });
    std::vector<Candidate> found;
    for (const std::vector<Candidate>& share : shares) found.insert(found.end(), share.begin(), share.end());
    // Clusters were not scanned in the order of rows.
    if (!std::is_sorted(found.begin(), found.end(), by_row)) std::sort(found.begin(), found.end(), by_row);
    keep_best_in_order(found, candidates_);
    return found;
  }

 private:
  // Candidates score above `floor`, and above all but the best `first_wanted` of the first window, unless that is 0.
  // They will do if there are `enough`.
  struct Attempt {
    std::vector<Visit> visits;
    std::size_t first_wanted;
    std::int16_t floor;
    std::size_t enough;
  };

  // Below every score but the lowest, which none is.
  static constexpr std::int16_t kNoFloor = -32768;

  // The attempts in windows begin ... end, one after the other until there are enough candidates.
  std::vector<Attempt> attempts(std::size_t begin, std::size_t end) const {
    const std::vector<Visit> visits = whole(begin, end);
    // Documents that score 0, as all do that are in no list of the query, or less are wanted only where there are few
    // others. Where few lists are scanned, most documents are such: to take them up would take longer than the rest.
    std::vector<Attempt> all{{visits, 0, 0, candidates_}, {visits, 0, kNoFloor, 0}};
    // That the first window holds hardly more than its share of the candidates is tried before: then few documents are
    // taken up that others push out later.
    const double share = static_cast<double>(candidates_) / static_cast<double>(end - begin);
    const double wanted = std::min(share + 4.0 * std::sqrt(share) + 8.0, static_cast<double>(candidates_));
    const bool is_full = begin < end && windows_[begin].last() - windows_[begin].first() == kWindow;
    if (scope_.allowed.all() && is_full && wanted <= kMostWanted)
      all.insert(all.begin(), Attempt{visits, static_cast<std::size_t>(wanted), 0, candidates_});
    return all;
  }

  // The same where most clusters are left out: all are scanned where that finds too little.
  std::vector<Attempt> probing(std::size_t q) const {
    return {{probed(*scope_.clusters, terms_[q], scope_.nprobe, windows_.size()), 0, -1, wanted_},
            {whole(0, windows_.size()), 0, kNoFloor, 0}};
  }

  static std::vector<Visit> whole(std::size_t begin, std::size_t end) {
    std::vector<Visit> visits;
    for (std::size_t i = begin; i < end; ++i) visits.push_back({i, kAllClusters});
    return visits;
  }

  void scan_window(std::size_t q, const Visit& visit, std::size_t first_wanted, WindowScan& scan,
                   CandidateSelection& selection) const {
    const Window& window = windows_[visit.window];
    const InvertedView& lists = *window.part->inverted;
    const std::size_t count = window.last() - window.first();
    Allowed allowed = window.part->of(scope_.allowed);
    if (!allowed.all()) allowed.bitmap += window.first() / 8;
    const auto first_row = static_cast<std::int64_t>(window.part->first_row + window.first());
    if (visit.clusters == kAllClusters) {
      scan.add(lists, window.number, terms_[q], steps(q));
      // Nearly every document of the first window would enter, and most would leave again.
      if (first_wanted != 0) selection.raise(scan.threshold(first_wanted, selection.threshold()));
      scan.take(0, kWindow, count, allowed, first_row, selection);
      return;
    }
    for (std::size_t first = 0, last; first < kClusters; first = last) {
      last = first + 1;
      if ((visit.clusters >> first & 1) == 0) continue;
      while (last < kClusters && (visit.clusters >> last & 1) != 0) ++last;
      scan.add_between(lists, window.number, terms_[q], steps(q), [&](const Term& term, const ListWindow& list) {
        return scope_.clusters->between(term.latent, visit.window, first, last, list.count);
      });
      scan.take(first * kCluster, last * kCluster, count, allowed, first_row, selection);
    }
  }

  const Scope& scope_;
  std::vector<Window> windows_;
  std::size_t candidates_;
  std::size_t wanted_;
  std::vector<std::vector<Term>> terms_;
  std::vector<float> steps_;
  std::mutex mutex_;
  std::vector<std::vector<std::vector<Candidate>>> found_;  // of each query, by share
};

}  // namespace compressae
