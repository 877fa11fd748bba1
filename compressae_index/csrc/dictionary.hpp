// A dictionary as the engine reads it: rows of unit norm, and a copy of bytes that products with all of them are
// taken from.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu.hpp"
#include "thread_pool.hpp"

namespace compressae {

// Largest magnitude of a byte.
inline constexpr float kByteLevels = 127.0f;

// Rounds x to bytes and returns their scale: x[i] is about bytes[i] * scale.
template <typename Put>
float to_bytes(const float* x, std::size_t count, const Put& put) {
  float largest = 0.0f;
  for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(x[i]));
  const float inverse = largest > 0.0f ? kByteLevels / largest : 0.0f;
  for (std::size_t i = 0; i < count; ++i) put(i, static_cast<std::int8_t>(std::lrintf(x[i] * inverse)));
  return largest / kByteLevels;
}

// A batch of vectors as bytes.
class QueryBytes {
 public:
  QueryBytes(const float* rows, std::size_t n, std::size_t dim, std::size_t quads)
      : bytes_(n * 4 * quads), scales_(n), sums_(n) {
    for (std::size_t r = 0; r < n; ++r) {
      std::int8_t* bytes = bytes_.data() + r * 4 * quads;
      scales_[r] = to_bytes(rows + r * dim, dim, [&](std::size_t i, std::int8_t byte) {
        bytes[i] = byte;
        sums_[r] += byte;
      });
    }
  }

  ByteQueries view() const { return {bytes_.data(), scales_.data(), sums_.data(), scales_.size()}; }

 private:
  std::vector<std::int8_t> bytes_;
  std::vector<float> scales_;
  std::vector<std::int32_t> sums_;
};

class Dictionary {
 public:
  // Vectors whose products are taken at a time: their products stay in the second-level cache.
  static constexpr std::size_t kTile = 24;

  // atoms: (n_latents, dim) rows of unit norm, borrowed.
  Dictionary(const float* atoms, std::size_t n_latents, std::size_t dim)
      : atoms_(atoms),
        n_latents_(n_latents),
        dim_(dim),
        quads_((dim + 3) / 4),
        n_blocks_((n_latents + kBlock - 1) / kBlock),
        bytes_(n_blocks_ * kBlock * 4 * quads_, 128),
        scales_(n_blocks_ * kBlock) {
    for (std::size_t latent = 0; latent < n_latents; ++latent) {
      std::uint8_t* first = bytes_.data() + (latent / 16 * quads_ * 16 + latent % 16) * 4;
      scales_[latent] = to_bytes(atom(latent), dim, [&](std::size_t i, std::int8_t byte) {
        first[i / 4 * 64 + i % 4] = static_cast<std::uint8_t>(byte + 128);
      });
    }
  }

  const float* atom(std::size_t latent) const { return atoms_ + latent * dim_; }
  std::size_t n_latents() const { return n_latents_; }
  std::size_t dim() const { return dim_; }
  // n_latents, padded to whole blocks.
  std::size_t stride() const { return n_blocks_ * kBlock; }

  // Products of at most kTile vectors (n, dim) with all atoms: (n, stride), 0 behind n_latents. Each entry is off by
  // about 1 / 300 of 2 / sqrt(dim), for vectors of unit norm.
  void products(const float* vectors, std::size_t n, float* products) const {
    const QueryBytes queries(vectors, n, dim_, quads_);
    kernels().byte_products({bytes_.data(), scales_.data(), n_blocks_, quads_}, queries.view(), products, stride());
  }

 private:
  const float* atoms_;
  std::size_t n_latents_;
  std::size_t dim_;
  std::size_t quads_;
  std::size_t n_blocks_;
  std::vector<std::uint8_t> bytes_;
  std::vector<float> scales_;
};

// The products of all atoms with each other, rounded to bytes, the diagonal left out.
class GramBytes {
 public:
  GramBytes(const Dictionary& dictionary, std::size_t num_threads)
      : stride_(dictionary.stride()), bytes_(dictionary.n_latents() * stride_), scales_(dictionary.n_latents()) {
    constexpr std::size_t kTile = Dictionary::kTile;
    const std::size_t n = dictionary.n_latents();
    ThreadPool::instance().parallel_for((n + kTile - 1) / kTile, num_threads, [&](std::size_t task) {
      const std::size_t first = task * kTile, count = std::min(kTile, n - first);
      std::vector<float> products(count * stride_);
      dictionary.products(dictionary.atom(first), count, products.data());
      for (std::size_t latent = first; latent < first + count; ++latent) {
        float* row = products.data() + (latent - first) * stride_;
        row[latent] = 0.0f;
        scales_[latent] = to_bytes(row, stride_, [&](std::size_t i, std::int8_t byte) {
          bytes_[latent * stride_ + i] = byte;
        });
      }
    });
  }

  const std::int8_t* row(std::size_t latent) const { return bytes_.data() + latent * stride_; }
  float scale(std::size_t latent) const { return scales_[latent]; }

 private:
  std::size_t stride_;
  std::vector<std::int8_t> bytes_;
  std::vector<float> scales_;
};

}  // namespace compressae
