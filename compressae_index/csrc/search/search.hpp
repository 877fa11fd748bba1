// Searches of a batch of queries: by posting lists, by codes, or by both, and who does which of it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "base/thread_pool.hpp"
#include "base/top_k.hpp"
#include "kernels/kernels.hpp"
#include "lists/terms.hpp"
#include "search/list_search.hpp"
#include "search/parts.hpp"

namespace compressae {

// A projection where any 16-bit latent of a damaged code may look. Behind its own entries are zeros.
class PaddedProjection {
 public:
  const float* whole(const float* projection, std::size_t n_entries) {
    std::copy_n(projection, n_entries, entries_.begin());
    clear_from(n_entries);
    return entries_.data();
  }

  // All but the terms, and the entries from n_latents on, 0.
  const float* only(const std::vector<Term>& terms, const float* projection, std::size_t n_latents,
                    std::size_t n_entries) {
    std::fill_n(entries_.begin(), n_latents, 0.0f);
    std::copy(projection + n_latents, projection + n_entries,
              entries_.begin() + static_cast<std::ptrdiff_t>(n_latents));
    clear_from(n_entries);
    for (const Term& term : terms) entries_[term.latent] = term.weight;
    return entries_.data();
  }

 private:
  // Clears the rest of a larger projection: damaged codes that name such latents score 0, whatever ran before.
  void clear_from(std::size_t n_entries) {
    if (n_entries < used_) std::fill(entries_.begin() + n_entries, entries_.begin() + used_, 0.0f);
    used_ = n_entries;
  }

  std::vector<float> entries_ = std::vector<float>(kMaxLatents + 1);  // and one for norms
  std::size_t used_ = 0;
};

// Windows that a thread scans by posting lists, at least, where several share a query. To wake one up takes as long as
// some windows, and each selects all candidates: among 4 windows, two threads were slower than one.
inline constexpr std::size_t kListedShare = 8;

// Runs scan(query, begin, end) over runs of windows, then finish(query), for each query: whole queries are shared out
// where there are enough of them, else the windows of each, `least` to a thread.
template <typename Scan, typename Finish>
void for_each_query(std::size_t n_queries, std::size_t n_windows, std::size_t least, std::size_t num_threads,
                    const Scan& scan, const Finish& finish) {
  ThreadPool& pool = ThreadPool::instance();
  const std::size_t shares = std::clamp<std::size_t>(num_threads / std::max<std::size_t>(n_queries, 1), 1,
                                                     std::max<std::size_t>(n_windows / least, 1));
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
    TopK best(scope.refinement.kept(results.top));
    for (std::size_t i = begin; i < end; ++i) {
      const Part& part = *windows[i].part;
      part.forward->scan(u, windows[i].first(), windows[i].last(), part.allowed,
                         static_cast<std::int64_t>(part.first_row), best);
    }
    const std::lock_guard lock(mutex);
    found[q].push_back(std::move(best));
  };
  const auto finish = [&](std::size_t q) {
    TopK& best = found[q].front();
    for (std::size_t i = 1; i < found[q].size(); ++i) best.merge(found[q][i]);
    scope.refinement.write(q, best, results);
    found[q].clear();
  };
  for_each_query(n_queries, windows.size(), 1, num_threads, scan, finish);
}

// The same by whole projections.
inline void search_dense(const Scope& scope, const float* projections, std::size_t n_queries, std::size_t num_threads,
                         const Results& results) {
  const auto project = [&](std::size_t q, PaddedProjection& padded) {
    return padded.whole(projections + q * scope.n_entries, scope.n_entries);
  };
  search_all(scope, project, n_queries, num_threads, results);
}

// The best by the posting lists alone, damped or not; scores are off by the rounding to 16-bit steps.
inline void search_lists(const Scope& scope, const float* projections, std::size_t n_queries, std::size_t query_nnz,
                         std::size_t num_threads, bool damped, const Results& results) {
  ListSearch lists(scope, projections, n_queries, query_nnz, results.top, num_threads, damped);
  const auto scan = [&](std::size_t q, std::size_t begin, std::size_t end) { lists.scan(q, begin, end); };
  const auto finish = [&](std::size_t q) {
    const Scale& scale = lists.scale(q);
    TopK best(results.top);
    for (const Candidate& candidate : lists.candidates(q)) best.push(scale.score_of(candidate.score), candidate.row);
    results.write(q, best);
  };
  for_each_query(n_queries, lists.n_windows(), kListedShare, num_threads, scan, finish);
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

// Takes the best `candidates` by the posting lists of the query's query_nnz largest terms in stage_one, damped or not,
// and scores them by their codes: with the projections of stage_two, or where there are none, with those terms alone.
// Where few documents are allowed, all of them are candidates.
inline void search_two_stage(const Scope& scope, const float* stage_one, const float* stage_two, std::size_t n_queries,
                             std::size_t query_nnz, std::size_t candidates, std::size_t num_threads, bool damped,
                             const Results& results) {
  ListSearch lists(scope, stage_one, n_queries, query_nnz, candidates, num_threads, damped);
  const auto project = [&](std::size_t q, PaddedProjection& padded) {
    return stage_two != nullptr
               ? padded.whole(stage_two + q * scope.n_entries, scope.n_entries)
               : padded.only(lists.terms(q), stage_one + q * scope.n_entries, lists.n_latents(), scope.n_entries);
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
    TopK best(scope.refinement.kept(results.top));
    rescore_rows(scope.parts, project(q, padded), rows, best);
    scope.refinement.write(q, best, results);
  };
  for_each_query(n_queries, lists.n_windows(), kListedShare, num_threads, scan, finish);
}

// Scores the candidate rows of each query, (n_queries, width), by their whole codes; they must be distinct. A negative
// candidate is an empty place.
inline void search_candidates(const std::vector<Part>& parts, const float* projections, std::size_t n_entries,
                              const std::int64_t* candidates, std::size_t n_queries, std::size_t width,
                              std::size_t num_threads, const Results& results) {
  ThreadPool::instance().parallel_for(n_queries, num_threads, [&](std::size_t q) {
    thread_local PaddedProjection padded;
    std::vector<std::int64_t> rows(candidates + q * width, candidates + (q + 1) * width);
    std::sort(rows.begin(), rows.end());
    rows.erase(rows.begin(), std::lower_bound(rows.begin(), rows.end(), 0));
    TopK best(results.top);
    rescore_rows(parts, padded.whole(projections + q * n_entries, n_entries), rows, best);
    results.write(q, best);
  });
}

}  // namespace compressae
