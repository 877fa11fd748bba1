// Runs of similar documents, so that a query need not look at all of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/half.hpp"
#include "base/huge.hpp"
#include "base/thread_pool.hpp"
#include "base/top_k.hpp"
#include "kernels/dispatch.hpp"
#include "lists/inverted.hpp"
#include "lists/terms.hpp"

namespace compressae {

// Documents of a cluster, and clusters of a window: each of these is scanned on its own where a search skips others.
inline constexpr std::size_t kCluster = 4096, kClusters = kWindow / kCluster;

// The clusters of the first n_windows windows of an index, all whole; borrowed arrays.
struct ClusterView {
  std::size_t n_windows = 0;
  std::size_t n_latents = 0;
  const std::uint16_t* begins = nullptr;  // (n_latents, n_windows, kClusters): where each begins in a window's postings
  const std::int8_t* means = nullptr;     // (n_latents, stride()): the mean code of each, in scales
  const float* scales = nullptr;          // (n_latents)

  // Where in a list of a window's `count` postings those of clusters first ... last begin and end: within `count` even
  // if the file is damaged.
  std::pair<std::size_t, std::size_t> between(std::size_t latent, std::size_t window, std::size_t first,
                                              std::size_t last, std::size_t count) const {
    const std::uint16_t* begin = begins + (latent * n_windows + window) * kClusters;
    const std::size_t end = last == kClusters ? count : std::min<std::size_t>(begin[last], count);
    return {std::min<std::size_t>(begin[first], end), end};
  }

  // Throws if these are not the clusters of the lists.
  void validate(const InvertedView& lists, std::size_t num_threads) const {
    ThreadPool::instance().parallel_for(n_latents, num_threads,
                                        [&](std::size_t latent) { validate_list(lists, latent); });
  }

  void validate_list(const InvertedView& lists, std::size_t latent) const {
    const auto refuse = [&](const std::string& what) {
      throw std::invalid_argument("corrupt clusters: " + what + " of latent " + std::to_string(latent));
    };
    if (!(scales[latent] >= 0.0f && scales[latent] <= kLargestHalf)) refuse("the scale");
    for (std::size_t w = 0; w < n_windows; ++w) {
      const ListWindow list = lists.window(latent, w);
      const std::uint16_t* begin = begins + (latent * n_windows + w) * kClusters;
      for (std::size_t c = 0; c < kClusters; ++c) {
        const std::size_t at = begin[c], first = c * kCluster;
        if (at > list.count || (at > 0 && list.ids[at - 1] >= first) || (at < list.count && list.ids[at] < first))
          refuse("the begin of cluster " + std::to_string(w * kClusters + c));
      }
    }
  }

  std::size_t n_clusters() const { return n_windows * kClusters; }
  std::size_t stride() const { return stride_of(n_windows); }

  static std::size_t stride_of(std::size_t n_windows) { return (n_windows * kClusters + kBlock - 1) / kBlock * kBlock; }
};

struct ClusterArrays {
  ClusterArrays(std::size_t n_latents, std::size_t n_windows)
      : begins(n_latents * n_windows * kClusters),
        means(n_latents * ClusterView::stride_of(n_windows)),
        scales(n_latents) {}

  HugeVector<std::uint16_t> begins;
  HugeVector<std::int8_t> means;
  std::vector<float> scales;
};

// Of the first n_windows windows of posting lists.
inline ClusterArrays build_clusters(const InvertedView& lists, std::size_t n_windows, std::size_t num_threads) {
  ClusterArrays arrays(lists.n_latents, n_windows);
  const std::size_t stride = ClusterView::stride_of(n_windows);
  ThreadPool::instance().parallel_for(lists.n_latents, num_threads, [&](std::size_t j) {
    std::vector<float> means(n_windows * kClusters);
    for (std::size_t w = 0; w < n_windows; ++w) {
      const ListWindow list = lists.window(j, w);
      std::uint16_t* begins = arrays.begins.data() + (j * n_windows + w) * kClusters;
      std::size_t i = 0;
      for (std::size_t c = 0; c < kClusters; ++c) {
        begins[c] = static_cast<std::uint16_t>(i);
        std::int32_t sum = 0;
        for (; i < list.count && list.ids[i] < (c + 1) * kCluster; ++i) sum += list.values[i];
        means[w * kClusters + c] = static_cast<float>(sum) * list.scale / static_cast<float>(kCluster);
      }
    }
    float largest = 0.0f;
    for (const float mean : means) largest = std::max(largest, std::fabs(mean));
    arrays.scales[j] = largest / 127.0f;
    for (std::size_t c = 0; c < means.size(); ++c)
      arrays.means[j * stride + c] =
          largest > 0.0f ? static_cast<std::int8_t>(std::lrintf(means[c] / arrays.scales[j])) : std::int8_t{0};
  });
  return arrays;
}

// A window to scan, by its number, and its clusters to scan: bit c is cluster c.
struct Visit {
  std::size_t window;
  std::uint32_t clusters;
};

inline constexpr std::uint32_t kAllClusters = (1u << kClusters) - 1;

// The windows that hold the nprobe clusters whose mean codes score best, the best of these first, then all windows of
// documents that are in no cluster.
inline std::vector<Visit> probed(const ClusterView& clusters, const std::vector<Term>& terms, std::size_t nprobe,
                                 std::size_t n_windows) {
  std::vector<float> scores(clusters.stride()), weights;
  std::vector<const std::int8_t*> rows;
  for (const Term& term : terms) {
    rows.push_back(clusters.means + term.latent * clusters.stride());
    weights.push_back(term.weight * clusters.scales[term.latent]);
  }
  kernels().add_byte_rows(rows.data(), weights.data(), rows.size(), clusters.stride(), scores.data());
  nprobe = std::min(nprobe, clusters.n_clusters());
  TopK best(nprobe);
  for (std::size_t c = 0; c < clusters.n_clusters(); ++c) best.offer(scores[c], static_cast<std::int64_t>(c));
  std::vector<std::int64_t> chosen(nprobe);
  best.write(scores.data(), chosen.data());
  std::vector<Visit> visits;
  std::vector<std::size_t> visit_of(clusters.n_windows, n_windows);
  for (const std::int64_t cluster : chosen) {
    if (cluster < 0) break;  // a damaged file's clusters may score NaN
    const std::size_t window = static_cast<std::size_t>(cluster) / kClusters;
    if (visit_of[window] == n_windows) {
      visit_of[window] = visits.size();
      visits.push_back({window, 0});
    }
    visits[visit_of[window]].clusters |= 1u << static_cast<std::size_t>(cluster) % kClusters;
  }
  for (std::size_t window = clusters.n_windows; window < n_windows; ++window) visits.push_back({window, kAllClusters});
  return visits;
}

}  // namespace compressae
