// A dictionary as the engine reads it: rows of unit norm, and copies of integers that products with all of them are
// taken from: of bytes for pursuit, of words for projections.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu.hpp"
#include "huge.hpp"
#include "terms.hpp"
#include "thread_pool.hpp"

namespace compressae {

// How x is rounded: `most` steps are as long as `size`.
struct Steps {
  float size;
  float most;

  float scale() const { return size / most; }
};

// Calls put(i, x[i] in steps, rounded).
template <typename Put>
void round_to(const float* x, std::size_t count, const Steps& steps, const Put& put) {
  const float inverse = steps.size > 0.0f ? steps.most / steps.size : 0.0f;
  for (std::size_t i = 0; i < count; ++i) put(i, static_cast<std::int32_t>(std::lrintf(x[i] * inverse)));
}

// The norm of what rounding takes away, or adds.
inline float rounding_error(const float* x, std::size_t count, const Steps& steps) {
  double squares = 0.0;
  round_to(x, count, steps, [&](std::size_t i, std::int32_t entry) {
    const double error = static_cast<double>(x[i]) - static_cast<double>(entry) * steps.scale();
    squares += error * error;
  });
  return static_cast<float>(std::sqrt(squares));
}

inline float largest_of(const float* x, std::size_t count) {
  float largest = 0.0f;
  for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(x[i]));
  return largest;
}

inline float norm_of(const float* x, std::size_t count) { return std::sqrt(kernels().dot(x, x, count)); }

inline Steps row_steps(const float* x, std::size_t count, Bytes) { return {largest_of(x, count), 127.0f}; }
inline Steps query_steps(const float* x, std::size_t count, Bytes) { return row_steps(x, count, Bytes()); }

// Norms of 2^18 and 2^12: by Cauchy and Schwarz no sum of products leaves 31 bits, as long as rounding makes none
// longer by 40 %, which would take 10 million columns.
inline Steps row_steps(const float* x, std::size_t count, Words) {
  const Steps fit{largest_of(x, count), 32767.0f}, add_up{norm_of(x, count), 0x1p18f};
  return fit.scale() > add_up.scale() ? fit : add_up;
}
inline Steps query_steps(const float* x, std::size_t count, Words) { return {norm_of(x, count), 0x1p12f}; }

// Rows as the kernels take products with them.
template <typename Integers>
class RoundedRows {
 public:
  // rows: (n, dim).
  RoundedRows(const float* rows, std::size_t n, std::size_t dim)
      : dim_(dim),
        steps_((dim + kStep - 1) / kStep),
        n_blocks_((n + kBlock - 1) / kBlock),
        entries_(n_blocks_ * kBlock * kStep * steps_, typename Integers::Row{Integers::kAdded}),
        scales_(n_blocks_ * kBlock) {
    for (std::size_t r = 0; r < n; ++r) {
      auto* first = entries_.data() + (r / 16 * steps_ * 16 + r % 16) * kStep;
      const Steps steps = row_steps(rows + r * dim, dim, Integers());
      scales_[r] = steps.scale();
      round_to(rows + r * dim, dim, steps, [&](std::size_t i, std::int32_t entry) {
        first[i / kStep * 16 * kStep + i % kStep] = static_cast<typename Integers::Row>(entry + Integers::kAdded);
      });
    }
  }

  std::size_t padded() const { return n_blocks_ * kBlock; }

  // Products of n vectors (n, dim) with the first n_rows rows, of which some may be padding: (n, n_rows).
  void products(const float* vectors, std::size_t n, std::size_t n_rows, float* products) const {
    const std::size_t n_planes = n * Integers::kPlanes, length = kStep * steps_;
    std::vector<typename Integers::Query> entries(n_planes * length);
    std::vector<float> scales(n_planes), rest(dim_);
    std::vector<std::int32_t> sums(n_planes);
    for (std::size_t p = 0; p < n_planes; ++p) {
      if (p % Integers::kPlanes == 0) std::copy_n(vectors + p / Integers::kPlanes * dim_, dim_, rest.begin());
      const Steps steps = query_steps(rest.data(), dim_, Integers());
      scales[p] = steps.scale();
      round_to(rest.data(), dim_, steps, [&](std::size_t i, std::int32_t entry) {
        entries[p * length + i] = static_cast<typename Integers::Query>(entry);
        sums[p] += entry;
        rest[i] -= static_cast<float>(entry) * scales[p];
      });
    }
    const ProductRows<Integers> rows{entries_.data(), scales_.data(), n_blocks_, steps_};
    const ProductQueries<Integers> queries{entries.data(), scales.data(), sums.data(), n};
    if constexpr (std::is_same_v<Integers, Bytes>)
      kernels().byte_products(rows, n_rows, queries, products, n_rows);
    else
      kernels().word_products(rows, n_rows, queries, products, n_rows);
  }

 private:
  static constexpr std::size_t kStep = Integers::kStep;

  std::size_t dim_;
  std::size_t steps_;
  std::size_t n_blocks_;
  HugeVector<typename Integers::Row> entries_;
  std::vector<float> scales_;
};

class Dictionary {
 public:
  // Vectors whose products are taken at a time: their products stay in the second-level cache.
  static constexpr std::size_t kTile = 24;

  // atoms: (n_latents, dim) rows of unit norm, borrowed.
  Dictionary(const float* atoms, std::size_t n_latents, std::size_t dim)
      : atoms_(atoms), n_latents_(n_latents), dim_(dim), bytes_(atoms, n_latents, dim) {}

  const float* atom(std::size_t latent) const { return atoms_ + latent * dim_; }
  std::size_t n_latents() const { return n_latents_; }
  std::size_t dim() const { return dim_; }
  // n_latents, padded to whole blocks.
  std::size_t stride() const { return bytes_.padded(); }

  // Products of at most kTile vectors (n, dim) with all atoms: (n, stride), 0 behind n_latents. Each entry is off by
  // about 1 / 300 of 2 / sqrt(dim), for vectors of unit norm.
  void products(const float* vectors, std::size_t n, float* products) const {
    bytes_.products(vectors, n, stride(), products);
  }

 private:
  const float* atoms_;
  std::size_t n_latents_;
  std::size_t dim_;
  RoundedRows<Bytes> bytes_;
};

// Finds the largest products of a vector with all atoms from rounded ones.
class LargestProducts {
 public:
  explicit LargestProducts(const Dictionary& dictionary) : dictionary_(dictionary) {
    for (std::size_t latent = 0; latent < dictionary.n_latents(); ++latent) {
      const float* atom = dictionary.atom(latent);
      largest_norm_ = std::max(largest_norm_, norm_of(atom, dictionary.dim()));
      const Steps steps = row_steps(atom, dictionary.dim(), Bytes());
      largest_error_ = std::max(largest_error_, rounding_error(atom, dictionary.dim(), steps));
    }
  }

  // The `count` products of a vector (dim) that are largest in magnitude, exact: of its `products`, as the dictionary
  // gives them, only those that may be among them are taken again.
  std::vector<Term> find(const float* vector, const float* products, std::size_t count) const {
    const std::size_t n = dictionary_.n_latents(), dim = dictionary_.dim();
    // <a, x> - <a', x'> = <a - a', x> + <a', x - x'>, and by Cauchy and Schwarz neither is more than its norms'
    // product.
    const float vector_error = rounding_error(vector, dim, query_steps(vector, dim, Bytes()));
    const float off = largest_error_ * norm_of(vector, dim) + (largest_norm_ + largest_error_) * vector_error;
    const float reached = magnitude_reached(products, n, std::min(count, n), 0);
    std::vector<Term> terms = terms_reaching(products, n, reached - 2.0f * kSlack * off);
    for (Term& term : terms) term.weight = kernels().dot(vector, dictionary_.atom(term.latent), dim);
    keep_largest(terms, count);
    return terms;
  }

 private:
  // For what float32 takes away in all that.
  static constexpr float kSlack = 1.001f;

  const Dictionary& dictionary_;
  float largest_norm_ = 0.0f;   // of an atom
  float largest_error_ = 0.0f;  // the norm of what rounding took from one
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
        const Steps steps = row_steps(row, stride_, Bytes());
        scales_[latent] = steps.scale();
        round_to(row, stride_, steps, [&](std::size_t i, std::int32_t byte) {
          bytes_[latent * stride_ + i] = static_cast<std::int8_t>(byte);
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
