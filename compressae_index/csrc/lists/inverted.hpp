// The inverted part: posting lists by latent, window after window.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/half.hpp"
#include "base/huge.hpp"
#include "base/thread_pool.hpp"

namespace compressae {

// Documents a window: its 16-bit scores stay in the second-level cache, and its part of a list is longer than the
// cost of starting it.
inline constexpr std::size_t kWindow = 32768;
// Length of the scores: any 16-bit id of a damaged file still falls inside.
inline constexpr std::size_t kScores = 65536;

// Bytes of a posting: a document within its window, and a value.
inline constexpr std::size_t kPostingBytes = sizeof(std::uint16_t) + sizeof(std::int8_t);

// A list's postings of one window.
struct ListWindow {
  const std::uint16_t* ids;
  const std::int8_t* values;
  std::size_t count;
  float scale;
};

// Arrays of the inverted part, borrowed. The list of latent j begins at starts[j] of ids and values, window after
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

  // Postings of each list.
  std::vector<std::int64_t> lengths() const {
    std::vector<std::int64_t> all(n_latents);
    for (std::size_t j = 0; j < n_latents; ++j) all[j] = static_cast<std::int64_t>(starts[j + 1] - starts[j]);
    return all;
  }

  // Throws where validate_window does for any.
  void validate_windows(std::size_t num_threads) const {
    ThreadPool::instance().parallel_for(n_windows(), num_threads, [&](std::size_t w) { validate_window(w); });
  }

  // Throws if a list of a window does not ascend or names a document that does not exist, or if a document's norm
  // exceeds the largest, so that sums of 16 bits could overflow.
  void validate_window(std::size_t w) const {
    const std::size_t n_inside = std::min(kWindow, n_documents - w * kWindow);
    std::vector<float> squares(kScores);
    for (std::size_t j = 0; j < n_latents; ++j) {
      const ListWindow list = window(j, w);
      bool unsorted = list.count > 0 && list.ids[list.count - 1] >= n_inside;
      for (std::size_t i = 1; i < list.count; ++i) unsorted |= list.ids[i] <= list.ids[i - 1];
      if (unsorted || !is_positive_half(scales[j * n_windows() + w]))
        throw std::invalid_argument("corrupt posting lists: postings of latent " + std::to_string(j) + " in window " +
                                    std::to_string(w));
      for (std::size_t i = 0; i < list.count; ++i) {
        const float value = static_cast<float>(list.values[i]) * list.scale;
        squares[list.ids[i]] += value * value;
      }
    }
    // Sums in another order may differ in the last bits.
    const float norm = std::sqrt(*std::max_element(squares.begin(), squares.end()));
    if (!(norm <= largest_norm * 1.001f))
      throw std::invalid_argument("corrupt posting lists: a document has norm " + std::to_string(norm) +
                                  ", the largest is " + std::to_string(largest_norm));
  }
};

struct InvertedArrays {
  InvertedArrays(std::size_t n_latents, std::size_t n_windows)
      : starts(n_latents + 1), offsets(n_latents * (n_windows + 1)), scales(n_latents * n_windows) {}

  // For the postings, once they are counted.
  void make_room(std::size_t n_postings) {
    ids = HugeVector<std::uint16_t>(n_postings);
    values = HugeVector<std::int8_t>(n_postings);
  }

  std::vector<std::uint64_t> starts;
  std::vector<std::uint32_t> offsets;
  std::vector<std::uint16_t> scales;
  HugeVector<std::uint16_t> ids;
  HugeVector<std::int8_t> values;
  float largest_norm = 0.0f;
};

// Codes to make posting lists of: pairs (n_documents, k), latents below n_latents.
struct ListedCodes {
  const std::uint16_t* latents;
  const float* values;
  const bool* kept;  // (n_documents, k): which pairs lists keep; null: all
  std::size_t n_documents;
  std::size_t k;

  // Calls visit(document, pair) for the pairs that lists keep of documents first ... last.
  template <typename Visit>
  void each(std::size_t first, std::size_t last, const Visit& visit) const {
    for (std::size_t document = first; document < last; ++document)
      for (std::size_t i = document * k; i < (document + 1) * k; ++i)
        if (kept == nullptr || kept[i]) visit(document, i);
  }
};

inline InvertedArrays build_inverted(const ListedCodes& codes, std::size_t n_latents, std::size_t num_threads) {
  const std::size_t n_windows = (codes.n_documents + kWindow - 1) / kWindow;
  InvertedArrays arrays(n_latents, n_windows);
  const auto last_of = [&](std::size_t w) { return std::min((w + 1) * kWindow, codes.n_documents); };
  std::vector<float> norms(n_windows);

  // Lengths and scales first; offsets[j][w + 1] is the length of list j in window w until they are summed.
  ThreadPool::instance().parallel_for(n_windows, num_threads, [&](std::size_t w) {
    std::vector<float> largest(n_latents);
    std::vector<std::uint32_t> lengths(n_latents);
    codes.each(w * kWindow, last_of(w), [&](std::size_t, std::size_t i) {
      const std::uint16_t latent = codes.latents[i];
      ++lengths[latent];
      largest[latent] = std::max(largest[latent], std::fabs(codes.values[i]));
    });
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
  arrays.make_room(arrays.starts[n_latents]);
  ThreadPool::instance().parallel_for(n_windows, num_threads, [&](std::size_t w) {
    std::vector<std::uint64_t> next(n_latents);
    std::vector<float> scales(n_latents), inverses(n_latents), squares(kWindow);
    for (std::size_t j = 0; j < n_latents; ++j) {
      next[j] = arrays.starts[j] + arrays.offsets[j * (n_windows + 1) + w];
      scales[j] = from_half(arrays.scales[j * n_windows + w]);
      inverses[j] = scales[j] > 0.0f ? 1.0f / scales[j] : 0.0f;
    }
    codes.each(w * kWindow, last_of(w), [&](std::size_t document, std::size_t i) {
      const std::uint16_t latent = codes.latents[i];
      const std::uint64_t posting = next[latent]++;
      const float steps = std::clamp(codes.values[i] * inverses[latent], -127.0f, 127.0f);
      arrays.ids[posting] = static_cast<std::uint16_t>(document - w * kWindow);
      arrays.values[posting] = static_cast<std::int8_t>(std::lrintf(steps));
      const float value = static_cast<float>(arrays.values[posting]) * scales[latent];
      squares[document - w * kWindow] += value * value;
    });
    norms[w] = std::sqrt(*std::max_element(squares.begin(), squares.end()));
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
  InvertedArrays arrays(n_latents, n_windows);
  arrays.make_room(n_postings);
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

}  // namespace compressae
