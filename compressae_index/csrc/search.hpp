// Searches of a batch of queries over an index, which is a row of parts: what is scanned, in which order, by whom.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "clusters.hpp"
#include "forward.hpp"
#include "inverted.hpp"
#include "scan.hpp"
#include "thread_pool.hpp"
#include "top_k.hpp"

namespace compressae {

// The forward part in either form.
class Forward {
 public:
  virtual ~Forward() = default;
  // As scan_forward and rescore_forward do.
  virtual void scan(const float* u, std::size_t first, std::size_t last, const Allowed& allowed, std::int64_t first_row,
                    TopK& top_k) const = 0;
  virtual void rescore(const float* u, const std::int64_t* rows, std::size_t n, std::int64_t first_row,
                       TopK& top_k) const = 0;
};

// A run of documents in both forms, of which a search may need only one. All parts but the last hold whole windows.
struct Part {
  const InvertedView* inverted;
  const Forward* forward;
  std::size_t n_documents;
  std::size_t first_row;

  Allowed of(const Allowed& allowed) const { return {allowed.all() ? nullptr : allowed.bitmap + first_row / 8}; }
};

// A window of a part.
struct Window {
  const Part* part;
  std::size_t number;

  std::size_t first() const { return number * kWindow; }
  std::size_t last() const { return std::min(first() + kWindow, part->n_documents); }
};

// What every query of a batch is searched in.
struct Scope {
  std::vector<Part> parts;
  std::size_t n_latents;
  Allowed allowed;
  std::size_t n_allowed;
  const ClusterView* clusters = nullptr;  // of the first windows
  std::size_t nprobe = 0;                 // clusters whose posting lists a query scans; 0: all

  bool is_probed() const { return clusters != nullptr && nprobe != 0 && nprobe < clusters->n_clusters(); }

  std::size_t n_documents() const { return parts.empty() ? 0 : parts.back().first_row + parts.back().n_documents; }

  std::vector<Window> windows() const {
    std::vector<Window> all;
    for (const Part& part : parts)
      for (std::size_t w = 0; w * kWindow < part.n_documents; ++w) all.push_back({&part, w});
    return all;
  }
};

// A projection where any 16-bit latent of a damaged code may look. What stands behind n_latents is of no consequence.
class PaddedProjection {
 public:
  const float* whole(const float* projection, std::size_t n_latents) {
    std::copy_n(projection, n_latents, entries_.begin());
    return entries_.data();
  }

  // All but the terms 0.
  const float* only(const std::vector<Term>& terms, std::size_t n_latents) {
    std::fill_n(entries_.begin(), n_latents, 0.0f);
    for (const Term& term : terms) entries_[term.latent] = term.weight;
    return entries_.data();
  }

 private:
  std::vector<float> entries_ = std::vector<float>(65536);
};

// Runs scan(query, begin, end) over runs of windows, then finish(query), for each query: whole queries are shared out
// where there are enough of them, else the windows of each.
template <typename Scan, typename Finish>
void for_each_query(std::size_t n_queries, std::size_t n_windows, std::size_t num_threads, const Scan& scan,
                    const Finish& finish) {
  ThreadPool& pool = ThreadPool::instance();
  const std::size_t shares = std::clamp<std::size_t>(num_threads / std::max<std::size_t>(n_queries, 1), 1,
                                                     std::max<std::size_t>(n_windows, 1));
  if (shares == 1) {
    pool.parallel_for(n_queries, num_threads, [&](std::size_t q) {
      scan(q, std::size_t{0}, n_windows);
      finish(q);
    });
    return;
  }
  pool.parallel_for(n_queries * shares, num_threads, [&](std::size_t task) {
    const std::size_t q = task / shares, share = task % shares;
    scan(q, share * n_windows / shares, (share + 1) * n_windows / shares);
  });
  pool.parallel_for(n_queries, num_threads, finish);
}

// Places for the best of each query, (n_queries, top).
struct Results {
  float* scores;
  std::int64_t* rows;
  std::size_t top;

  void write(std::size_t q, TopK& best) const { best.write(scores + q * top, rows + q * top); }
};

// Scores every allowed document by its code, with the entries that project(q, padded) gives.
template <typename Project>
void search_all(const Scope& scope, const Project& project, std::size_t n_queries, std::size_t num_threads,
                const Results& results) {
  const std::vector<Window> windows = scope.windows();
  std::vector<std::vector<TopK>> found(n_queries);
  std::mutex mutex;
  const auto scan = [&](std::size_t q, std::size_t begin, std::size_t end) {
    thread_local PaddedProjection padded;
    const float* u = project(q, padded);
    TopK best(results.top);
    for (std::size_t i = begin; i < end; ++i) {
      const Part& part = *windows[i].part;
      part.forward->scan(u, windows[i].first(), windows[i].last(), part.of(scope.allowed),
                         static_cast<std::int64_t>(part.first_row), best);
    }
    const std::lock_guard lock(mutex);
    found[q].push_back(std::move(best));
  };
  const auto finish = [&](std::size_t q) {
    TopK& best = found[q].front();
    for (std::size_t i = 1; i < found[q].size(); ++i) best.merge(found[q][i]);
    results.write(q, best);
    found[q].clear();
  };
  for_each_query(n_queries, windows.size(), num_threads, scan, finish);
}

// The same by whole projections.
inline void search_dense(const Scope& scope, const float* projections, std::size_t n_queries, std::size_t num_threads,
                         const Results& results) {
  const auto project = [&](std::size_t q, PaddedProjection& padded) {
    return padded.whole(projections + q * scope.n_latents, scope.n_latents);
  };
  search_all(scope, project, n_queries, num_threads, results);
}

// Stage one by posting lists.
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

  // What to try in windows begin ... end until there are enough candidates.
  std::vector<Attempt> attempts(std::size_t begin, std::size_t end) const {
    const std::vector<Visit> visits = whole(begin, end);
    // Documents that score below 0 are wanted only where there are few others.
    std::vector<Attempt> all{{visits, 0, -1, candidates_}, {visits, 0, kNoFloor, 0}};
    // That the first window holds hardly more than its share of the candidates is tried before: then few documents are
    // taken up that others push out later.
    const double share = static_cast<double>(candidates_) / static_cast<double>(end - begin);
    const double wanted = std::min(share + 4.0 * std::sqrt(share) + 8.0, static_cast<double>(candidates_));
    const bool is_full = begin < end && windows_[begin].last() - windows_[begin].first() == kWindow;
    if (scope_.allowed.all() && is_full && wanted <= kMostWanted)
      all.insert(all.begin(), Attempt{visits, static_cast<std::size_t>(wanted), -1, candidates_});
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

// The best by the posting lists alone; scores are off by what rounding to 16-bit steps does.
inline void search_lists(const Scope& scope, const float* projections, std::size_t n_queries, std::size_t query_nnz,
                         std::size_t num_threads, const Results& results) {
  ListSearch lists(scope, projections, n_queries, query_nnz, results.top, results.top, num_threads);
  const auto scan = [&](std::size_t q, std::size_t begin, std::size_t end) { lists.scan(q, begin, end); };
  const auto finish = [&](std::size_t q) {
    const float steps = lists.steps(q);
    TopK best(results.top);
    for (const Candidate& candidate : lists.candidates(q))
      best.push(static_cast<float>(candidate.score) / steps, candidate.row);
    results.write(q, best);
  };
  for_each_query(n_queries, lists.n_shares(), num_threads, scan, finish);
}

// Offers rows, ascending, by their whole codes.
inline void rescore_rows(const std::vector<Part>& parts, const float* u, const std::vector<std::int64_t>& rows,
                         TopK& best) {
  auto begin = rows.begin();
  for (const Part& part : parts) {
    const auto first = static_cast<std::int64_t>(part.first_row);
    const auto end = std::lower_bound(begin, rows.end(), first + static_cast<std::int64_t>(part.n_documents));
    part.forward->rescore(u, rows.data() + (begin - rows.begin()), static_cast<std::size_t>(end - begin), first, best);
    begin = end;
  }
}

// Documents for each one whose code is read out of order in the time that their posting lists take.
inline constexpr std::size_t kListedPerCode = 256;

// Takes the best `candidates` by the posting lists of the query's query_nnz largest terms in stage_one, and scores
// them by their codes: with the projections of stage_two, or where there are none, with those terms alone. Where few
// documents are allowed, all of them are candidates.
inline void search_two_stage(const Scope& scope, const float* stage_one, const float* stage_two, std::size_t n_queries,
                             std::size_t query_nnz, std::size_t candidates, std::size_t num_threads,
                             const Results& results) {
  ListSearch lists(scope, stage_one, n_queries, query_nnz, candidates, results.top, num_threads);
  const auto project = [&](std::size_t q, PaddedProjection& padded) {
    return stage_two != nullptr ? padded.whole(stage_two + q * scope.n_latents, scope.n_latents)
                                : padded.only(lists.terms(q), scope.n_latents);
  };
  if (scope.n_allowed <= std::max(candidates, scope.n_documents() / kListedPerCode)) {
    search_all(scope, project, n_queries, num_threads, results);
    return;
  }
  const auto scan = [&](std::size_t q, std::size_t begin, std::size_t end) { lists.scan(q, begin, end); };
  const auto finish = [&](std::size_t q) {
    thread_local PaddedProjection padded;
    std::vector<std::int64_t> rows;
    for (const Candidate& candidate : lists.candidates(q)) rows.push_back(candidate.row);
    TopK best(results.top);
    rescore_rows(scope.parts, project(q, padded), rows, best);
    results.write(q, best);
  };
  for_each_query(n_queries, lists.n_shares(), num_threads, scan, finish);
}

// Scores the candidate rows of each query, (n_queries, width), by their whole codes; they must be distinct. A negative
// candidate is an empty place.
inline void search_candidates(const std::vector<Part>& parts, const float* projections, std::size_t n_latents,
                              const std::int64_t* candidates, std::size_t n_queries, std::size_t width,
                              std::size_t num_threads, const Results& results) {
  ThreadPool::instance().parallel_for(n_queries, num_threads, [&](std::size_t q) {
    thread_local PaddedProjection padded;
    std::vector<std::int64_t> rows(candidates + q * width, candidates + (q + 1) * width);
    std::sort(rows.begin(), rows.end());
    rows.erase(rows.begin(), std::lower_bound(rows.begin(), rows.end(), 0));
    TopK best(results.top);
    rescore_rows(parts, padded.whole(projections + q * n_latents, n_latents), rows, best);
    results.write(q, best);
  });
}

}  // namespace compressae
