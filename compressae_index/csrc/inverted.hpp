// The inverted part: posting lists scanned term at a time.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu.hpp"
#include "half.hpp"
#include "huge.hpp"
#include "thread_pool.hpp"
#include "top_k.hpp"

namespace compressae {

// Documents a window: its 16-bit scores stay in the second-level cache, and its part of a list is longer than the
// cost of starting it.
inline constexpr std::size_t kWindow = 32768;
// Documents of a cluster, and clusters of a window: each of these is scanned on its own where a search skips others.
inline constexpr std::size_t kCluster = 4096, kClusters = kWindow / kCluster;
// Length of the scores: any 16-bit id of a damaged file still falls inside.
inline constexpr std::size_t kScores = 65536;

// What a list holds of one window's documents.
struct ListWindow {
  const std::uint16_t* ids;
  const std::int8_t* values;
  std::size_t count;
  float scale;
};

// Arrays of the inverted part, borrowed. The list of latent j stands at starts[j] of ids and values, window after
// window, so that a query reads one run of memory for each of its terms: window w holds the documents
// [w * kWindow, (w + 1) * kWindow), and its postings are those from offsets[j][w] to offsets[j][w + 1] of the list.
// A posting's value is values[i] * scales[j][w], so it is rounded by at most half of scales[j][w], which is about
// the largest absolute value of the list in that window / 127.
struct InvertedView {
  std::size_t n_documents = 0;
  std::size_t n_latents = 0;
  std::size_t n_postings = 0;
  const std::uint64_t* starts = nullptr;   // (n_latents + 1)
  const std::uint32_t* offsets = nullptr;  // (n_latents, n_windows + 1)
  const std::uint16_t* scales = nullptr;   // (n_latents, n_windows) half precision
  const std::uint16_t* ids = nullptr;      // (n_postings) within the window
  const std::int8_t* values = nullptr;     // (n_postings)
  float largest_norm = 0.0f;               // of the documents' postings, as they are rounded

  std::size_t n_windows() const { return (n_documents + kWindow - 1) / kWindow; }

  ListWindow window(std::size_t latent, std::size_t w) const {
    const std::uint32_t* offset = offsets + latent * (n_windows() + 1) + w;
    const std::uint64_t begin = starts[latent] + offset[0];
    return {ids + begin, values + begin, offset[1] - offset[0], from_half(scales[latent * n_windows() + w])};
  }

  // Throws where a list would reach outside of the arrays.
  void validate() const {
    if (!std::is_sorted(starts, starts + n_latents + 1) || starts[0] != 0 || starts[n_latents] != n_postings)
      throw std::invalid_argument("corrupt posting lists: lists hold " + std::to_string(starts[n_latents]) +
                                  " postings, the arrays " + std::to_string(n_postings));
    for (std::size_t j = 0; j < n_latents; ++j) {
      const std::uint32_t* offset = offsets + j * (n_windows() + 1);
      if (!std::is_sorted(offset, offset + n_windows() + 1) || offset[0] != 0 ||
          offset[n_windows()] != starts[j + 1] - starts[j])
        throw std::invalid_argument("corrupt posting lists: offsets of latent " + std::to_string(j));
    }
    if (!(largest_norm >= 0.0f && std::isfinite(largest_norm)))
      throw std::invalid_argument("corrupt posting lists: the largest norm is " + std::to_string(largest_norm));
  }
};

struct InvertedArrays {
  InvertedArrays(std::size_t n_latents, std::size_t n_windows, std::size_t n_postings)
      : starts(n_latents + 1),
        offsets(n_latents * (n_windows + 1)),
        scales(n_latents * n_windows),
        ids(n_postings),
        values(n_postings) {}

  std::vector<std::uint64_t> starts;
  std::vector<std::uint32_t> offsets;
  std::vector<std::uint16_t> scales;
  HugeVector<std::uint16_t> ids;
  HugeVector<std::int8_t> values;
  float largest_norm = 0.0f;
};

// Posting lists of codes: latents and values are (n_documents, k), latents below n_latents.
inline InvertedArrays build_inverted(const std::uint16_t* latents, const float* values, std::size_t n_documents,
                                     std::size_t k, std::size_t n_latents, std::size_t num_threads) {
  const std::size_t n_windows = (n_documents + kWindow - 1) / kWindow;
  InvertedArrays arrays(n_latents, n_windows, n_documents * k);
  const auto in_window = [&](std::size_t w) {
    return std::pair{w * kWindow * k, std::min((w + 1) * kWindow, n_documents) * k};
  };
  std::vector<float> norms(n_windows);

  // Lengths and scales first; offsets[j][w + 1] is the length of list j in window w until they are summed.
  ThreadPool::instance().parallel_for(n_windows, num_threads, [&](std::size_t w) {
    const auto [first, last] = in_window(w);
    std::vector<float> largest(n_latents);
    std::vector<std::uint32_t> lengths(n_latents);
    for (std::size_t i = first; i < last; ++i) {
      ++lengths[latents[i]];
      largest[latents[i]] = std::max(largest[latents[i]], std::fabs(values[i]));
    }
    for (std::size_t j = 0; j < n_latents; ++j) {
      arrays.offsets[j * (n_windows + 1) + w + 1] = lengths[j];
      arrays.scales[j * n_windows + w] = to_half_up(largest[j] / 127.0f);
    }
  });
  for (std::size_t j = 0; j < n_latents; ++j) {
    std::uint32_t* offset = arrays.offsets.data() + j * (n_windows + 1);
    std::partial_sum(offset, offset + n_windows + 1, offset);
    arrays.starts[j + 1] = arrays.starts[j] + offset[n_windows];
  }
  ThreadPool::instance().parallel_for(n_windows, num_threads, [&](std::size_t w) {
    const auto [first, last] = in_window(w);
    std::vector<std::uint64_t> next(n_latents);
    std::vector<float> scales(n_latents), inverses(n_latents);
    for (std::size_t j = 0; j < n_latents; ++j) {
      next[j] = arrays.starts[j] + arrays.offsets[j * (n_windows + 1) + w];
      scales[j] = from_half(arrays.scales[j * n_windows + w]);
      inverses[j] = scales[j] > 0.0f ? 1.0f / scales[j] : 0.0f;
    }
    for (std::size_t begin = first; begin < last; begin += k) {
      float norm = 0.0f;
      for (std::size_t i = begin; i < begin + k; ++i) {
        const std::uint16_t latent = latents[i];
        const std::uint64_t posting = next[latent]++;
        const float steps = std::clamp(values[i] * inverses[latent], -127.0f, 127.0f);
        arrays.ids[posting] = static_cast<std::uint16_t>((begin - first) / k);
        arrays.values[posting] = static_cast<std::int8_t>(std::lrintf(steps));
        norm += std::pow(static_cast<float>(arrays.values[posting]) * scales[latent], 2.0f);
      }
      norms[w] = std::max(norms[w], std::sqrt(norm));
    }
  });
  arrays.largest_norm = *std::max_element(norms.begin(), norms.end());
  return arrays;
}

// Some windows of posting lists.
struct WindowRange {
  const InvertedView* lists;
  std::size_t first;
  std::size_t last;
};

// Lists of latent after latent, each of ranges one behind the other; all but the last range end at a whole window.
inline InvertedArrays concatenate(const std::vector<WindowRange>& ranges, std::size_t n_latents) {
  std::size_t n_windows = 0, n_postings = 0;
  const auto offsets_of = [](const WindowRange& range, std::size_t j) {
    return range.lists->offsets + j * (range.lists->n_windows() + 1);
  };
  for (const WindowRange& range : ranges) {
    n_windows += range.last - range.first;
    for (std::size_t j = 0; j < n_latents; ++j)
      n_postings += offsets_of(range, j)[range.last] - offsets_of(range, j)[range.first];
  }
  InvertedArrays arrays(n_latents, n_windows, n_postings);
  std::uint64_t posting = 0;
  for (std::size_t j = 0; j < n_latents; ++j) {
    arrays.starts[j] = posting;
    std::size_t w = 0;
    for (const WindowRange& range : ranges) {
      const std::uint32_t* offset = offsets_of(range, j);
      const std::uint64_t first = range.lists->starts[j] + offset[range.first];
      const std::uint32_t length = offset[range.last] - offset[range.first];
      std::copy_n(range.lists->ids + first, length, arrays.ids.data() + posting);
      std::copy_n(range.lists->values + first, length, arrays.values.data() + posting);
      for (std::size_t from = range.first; from < range.last; ++from, ++w) {
        arrays.offsets[j * (n_windows + 1) + w] =
            static_cast<std::uint32_t>(posting - arrays.starts[j]) + offset[from] - offset[range.first];
        arrays.scales[j * n_windows + w] = range.lists->scales[j * range.lists->n_windows() + from];
      }
      posting += length;
    }
    arrays.offsets[j * (n_windows + 1) + n_windows] = static_cast<std::uint32_t>(posting - arrays.starts[j]);
  }
  arrays.starts[n_latents] = posting;
  for (const WindowRange& range : ranges)
    arrays.largest_norm = std::max(arrays.largest_norm, range.lists->largest_norm);
  return arrays;
}

struct Term {
  std::size_t latent;
  float weight;
};

// The query_nnz largest absolute entries of a projection in the order of latents (a tie goes to the lower latent),
// zeros left out.
inline std::vector<Term> largest_terms(const float* projection, std::size_t n_latents, std::size_t query_nnz) {
  // Counts by the leading bits of the magnitudes find the few that must be compared.
  constexpr unsigned kShift = 19;
  const auto bucket = [projection](std::size_t j) {
    return (__builtin_bit_cast(std::uint32_t, projection[j]) & 0x7fffffff) >> kShift;
  };
  std::vector<std::uint32_t> counts(std::size_t{1} << (31 - kShift));
  for (std::size_t j = 0; j < n_latents; ++j) ++counts[bucket(j)];
  std::size_t lowest = counts.size(), n_above = 0;
  while (lowest > 0 && n_above < query_nnz) n_above += counts[--lowest];
  std::vector<Term> terms;
  terms.reserve(n_above);
  for (std::size_t j = 0; j < n_latents; ++j)
    if (bucket(j) >= lowest && projection[j] != 0.0f) terms.push_back({j, projection[j]});
  if (terms.size() > query_nnz) {
    const auto nth = terms.begin() + static_cast<std::ptrdiff_t>(query_nnz);
    std::nth_element(terms.begin(), nth, terms.end(), [](const Term& a, const Term& b) {
      const float x = std::fabs(a.weight), y = std::fabs(b.weight);
      return x > y || (x == y && a.latent < b.latent);
    });
    terms.resize(query_nnz);
    std::sort(terms.begin(), terms.end(), [](const Term& a, const Term& b) { return a.latent < b.latent; });
  }
  return terms;
}

// 16-bit steps of a score, so that no sum over the terms' lists can overflow. By Cauchy and Schwarz such a sum is at
// most the product of the norms of the terms' weights and of a document's postings, and it is at most the sum of what
// each list could add.
inline float steps_of(const std::vector<Term>& terms, float largest_norm) {
  double squares = 0.0;
  for (const Term& term : terms) squares += static_cast<double>(term.weight) * term.weight;
  const double bound = std::sqrt(squares) * largest_norm;
  // Each term's product is rounded by half a step, and a weight by half of 1 / 128 of one.
  const double largest = 32000.0 - static_cast<double>(std::min<std::size_t>(terms.size(), 16384));
  return bound > 0.0 ? static_cast<float>(largest / bound) : 1.0f;
}

// The most that threshold_of can be asked for.
inline constexpr std::size_t kMostWanted = 2048;

// A threshold that at least `wanted` of a window's scores exceed, where that many exceed `floor`, and few more: the
// largest scores of groups of 8 take their place, which are counted in a fraction of the time.
inline std::int16_t threshold_of(const std::int16_t* scores, std::size_t wanted, std::int16_t floor) {
  std::array<std::int16_t, 2 * kMostWanted> largest;
  std::copy_n(scores, largest.size(), largest.begin());
  for (std::size_t first = largest.size(); first < kWindow; first += largest.size())
    for (std::size_t i = 0; i < largest.size(); ++i) largest[i] = std::max(largest[i], scores[first + i]);
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

// A window to scan, by its number, and which of its clusters: bit c stands for cluster c.
struct Visit {
  std::size_t window;
  std::uint32_t clusters;
};

inline constexpr std::uint32_t kAllClusters = (1u << kClusters) - 1;

// Where the 16-bit scores of a window are added up and taken from. One serves after the other, in one thread.
class WindowScan {
 public:
  // Scores that the lists add up to in a window.
  void add(const InvertedView& lists, std::size_t w, const std::vector<Term>& terms, float steps) {
    collect(lists, w, terms, steps,
            [](const Term&, const ListWindow& list) { return std::pair{std::size_t{0}, list.count}; });
    kernels().accumulate(postings_.data(), postings_.size(), scores_.data());
  }

  // The same of what stands between two places of each list: between(term, list) gives them.
  template <typename Between>
  void add_between(const InvertedView& lists, std::size_t w, const std::vector<Term>& terms, float steps,
                   const Between& between) {
    collect(lists, w, terms, steps, between);
    // Unlike those of whole windows, they do not follow what was read before.
    for (const Postings& list : postings_) {
      __builtin_prefetch(list.ids);
      __builtin_prefetch(list.ids + 32);
      __builtin_prefetch(list.values);
    }
    kernels().accumulate(postings_.data(), postings_.size(), scores_.data());
  }

  // A threshold that at least `wanted` of the scores of a whole window exceed.
  std::int16_t threshold(std::size_t wanted, std::int16_t floor) const {
    return threshold_of(scores_.data(), wanted, floor);
  }

  // Offers documents first ... last of a window, of which `count` exist, and sets their scores to 0. One in no list
  // scores 0.
  void take(std::size_t first, std::size_t last, std::size_t count, const Allowed& allowed, std::int64_t first_row,
            CandidateSelection& selection) {
    std::uint16_t positions[kHits + kHitSlack];
    std::int16_t hits[kHits + kHitSlack];
    for (std::size_t at = first; at < std::min(last, count);) {
      const std::size_t n_hits = kernels().harvest(scores_.data(), at, std::min(last, count), selection.threshold(),
                                                   allowed.bitmap, positions, hits);
      selection.push(hits, positions, n_hits, first_row);
    }
    // A damaged file may have scored documents that are not there.
    if (count < last)
      std::fill(scores_.begin() + static_cast<std::ptrdiff_t>(count),
                scores_.begin() + static_cast<std::ptrdiff_t>(last), std::int16_t{0});
  }

  // Forgets scores of documents that were not taken.
  void clear() { std::fill_n(scores_.begin(), kWindow, std::int16_t{0}); }

 private:
  template <typename Between>
  void collect(const InvertedView& lists, std::size_t w, const std::vector<Term>& terms, float steps,
               const Between& between) {
    postings_.clear();
    for (const Term& term : terms) {
      const ListWindow list = lists.window(term.latent, w);
      const auto [begin, end] = between(term, list);
      const float weight = std::clamp(128.0f * steps * term.weight * list.scale, -32767.0f, 32767.0f);
      postings_.push_back(
          {list.ids + begin, list.values + begin, end - begin, static_cast<std::int16_t>(std::lrintf(weight))});
    }
  }

  std::vector<std::int16_t> scores_ = std::vector<std::int16_t>(kScores);
  std::vector<Postings> postings_;
};

}  // namespace compressae
