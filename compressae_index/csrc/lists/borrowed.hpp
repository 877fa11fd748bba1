// Posting lists that another library keeps in its own memory: one list a latent, of 64-bit documents and
// half-precision values. They are read where they are, also from a mapped file, so nothing need be aligned.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/allowed.hpp"
#include "base/half.hpp"
#include "base/thread_pool.hpp"
#include "base/top_k.hpp"

namespace compressae {

// Documents whose accumulators are filled at a time; they should stay in the second-level cache.
inline constexpr std::size_t kListWindow = 65536;

struct BorrowedList {
  const unsigned char* documents;  // count of std::int64_t, ascending
  const unsigned char* values;     // count of half-precision numbers
  std::size_t count;
};

// Throws where a list is not of ascending documents below n_documents with finite values.
inline void validate_list(const BorrowedList& list, std::size_t n_documents) {
  std::uint64_t least = 0;
  for (std::size_t i = 0; i < list.count; ++i) {
    std::int64_t document;
    std::uint16_t half;
    std::memcpy(&document, list.documents + 8 * i, 8);
    std::memcpy(&half, list.values + 2 * i, 2);
    const auto row = static_cast<std::uint64_t>(document);
    if (row < least || row >= n_documents || !is_finite_half(half))
      throw std::invalid_argument("a posting list holds document " + std::to_string(document) + " at place " +
                                  std::to_string(i) + ", which is out of order, outside of " +
                                  std::to_string(n_documents) + " documents, or has a value that is not finite");
    least = row + 1;
  }
}

struct ListTerm {
  const BorrowedList* list;
  float weight;
  std::size_t next;  // first posting that was not read yet
};

// scores[document - first] += weight * value, for postings from term.next on, up to the first one whose document
// is outside of [first, first + width).
inline void accumulate_list(ListTerm& term, std::uint64_t first, std::size_t width, float* scores) {
  // Copies, which no write to scores can change.
  const BorrowedList list = *term.list;
  const float weight = term.weight;
  std::size_t i = term.next;
  for (; i < list.count; ++i) {
    std::uint64_t document;
    std::memcpy(&document, list.documents + 8 * i, 8);
    const std::uint64_t local = document - first;
    if (local >= width) break;
    std::uint16_t half;
    std::memcpy(&half, list.values + 2 * i, 2);
    scores[local] += weight * from_half(half);
  }
  term.next = i;
}

// Pushes the documents of a window that can still enter, and clears the accumulators.
inline void harvest_window(float* scores, std::size_t width, std::size_t first, const Allowed& allowed, TopK& top_k) {
  constexpr std::size_t kRun = 64;
  for (std::size_t begin = 0; begin < width; begin += kRun) {
    const std::size_t end = std::min(begin + kRun, width);
    const float threshold = top_k.threshold();
    int above = 0;
    for (std::size_t i = begin; i < end; ++i) above |= scores[i] > threshold;
    if (above == 0) continue;
    for (std::size_t i = begin; i < end; ++i)
      if (allowed(first + i)) top_k.offer(scores[i], static_cast<std::int64_t>(first + i));
  }
  std::fill(scores, scores + width, 0.0f);
}

// Scores documents 0 ... n_documents - 1 by the signed sum over the terms' lists; one in none of them scores 0.
// scores: kListWindow zeros, left as zeros. Throws where a list is not ascending or holds a foreign document.
inline void search_terms(std::vector<ListTerm>& terms, std::size_t n_documents, const Allowed& allowed, float* scores,
                         TopK& top_k) {
  for (std::size_t first = 0; first < n_documents; first += kListWindow) {
    const std::size_t width = std::min(kListWindow, n_documents - first);
    for (ListTerm& term : terms) accumulate_list(term, first, width, scores);
    harvest_window(scores, width, first, allowed, top_k);
  }
  for (const ListTerm& term : terms) {
    if (term.next == term.list->count) continue;
    std::int64_t document;
    std::memcpy(&document, term.list->documents + 8 * term.next, 8);
    throw std::invalid_argument("a posting list holds document " + std::to_string(document) + " at place " +
                                std::to_string(term.next) + ", which is out of order or outside of " +
                                std::to_string(n_documents) + " documents");
  }
}

// All lists of an index.
struct BorrowedView {
  std::vector<BorrowedList> lists;  // of each latent
  std::size_t n_documents = 0;

  // Throws where validate_list does for any.
  void validate(std::size_t num_threads) const {
    ThreadPool::instance().parallel_for(lists.size(), num_threads,
                                        [&](std::size_t latent) { validate_list(lists[latent], n_documents); });
  }

  // Searches by terms (n_queries, width); those of weight 0 do not count.
  void search(const std::uint16_t* latents, const float* weights, std::size_t n_queries, std::size_t width,
              const Allowed& allowed, std::size_t num_threads, const Results& results) const {
    ThreadPool::instance().parallel_for(n_queries, num_threads, [&](std::size_t q) {
      // Zeros again after a search that threw.
      thread_local std::vector<float> scores;
      scores.assign(kListWindow, 0.0f);
      std::vector<ListTerm> terms;
      for (std::size_t i = q * width; i < (q + 1) * width; ++i)
        if (weights[i] != 0.0f) terms.push_back({&lists[latents[i]], weights[i], 0});
      TopK best(results.top);
      search_terms(terms, n_documents, allowed, scores.data(), best);
      results.write(q, best);
    });
  }
};

}  // namespace compressae
