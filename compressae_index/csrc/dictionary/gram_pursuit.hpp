// Orthogonal matching pursuit against a dictionary of unit rows (Pati et al., 1993), with the Gram matrix
// (Rubinstein et al., 2008): the residual is never formed, only its correlations with all atoms, from the vector's
// products with them and the rows of the matrix that the chosen atoms have, in bytes. For small dictionaries: the
// matrix takes n_latents^2 bytes, and each atom that is chosen reads a row of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/huge.hpp"
#include "base/thread_pool.hpp"
#include "dictionary/candidates.hpp"
#include "dictionary/dictionary.hpp"
#include "dictionary/support.hpp"
#include "kernels/dispatch.hpp"

namespace compressae {

// The products of all atoms with each other, rounded to bytes, the diagonal left out. Columns are in the order that
// InterleavedRows::place says, and bytes have kAdded more.
class GramBytes {
 public:
  GramBytes(const Dictionary& dictionary, std::size_t num_threads)
      : stride_(dictionary.stride()), bytes_(dictionary.n_latents() * stride_), scales_(dictionary.n_latents()) {
    std::vector<std::size_t> places(stride_);
    for (std::size_t i = 0; i < stride_; ++i) places[i] = InterleavedRows::place(i);
    constexpr std::size_t kTile = Dictionary::kTile;
    const std::size_t n = dictionary.n_latents();
    ThreadPool::instance().parallel_for((n + kTile - 1) / kTile, num_threads, [&](std::size_t task) {
      const std::size_t first = task * kTile, count = std::min(kTile, n - first);
      std::vector<float> products(count * stride_);
      dictionary.products(dictionary.atom(first), count, products.data());
      for (std::size_t latent = first; latent < first + count; ++latent) {
        float* row = products.data() + (latent - first) * stride_;
        row[latent] = 0.0f;
        scales_[latent] = step_of(row, stride_);
        std::uint8_t* bytes = bytes_.data() + latent * stride_;
        round_to(row, stride_, scales_[latent], [&](std::size_t i, float byte) {
          bytes[places[i]] = static_cast<std::uint8_t>(static_cast<std::int32_t>(byte) + ProductRows::kAdded);
        });
      }
    });
  }

  const std::uint8_t* row(std::size_t latent) const { return bytes_.data() + latent * stride_; }
  float scale(std::size_t latent) const { return scales_[latent]; }

 private:
  std::size_t stride_;
  HugeVector<std::uint8_t> bytes_;
  std::vector<float> scales_;
};

class GramPursuit {
 public:
  // Values are solved for, and the residual's correlations are computed anew, as Schedule says; in between each atom
  // takes its correlation as its value (matching pursuit).
  GramPursuit(const Dictionary& dictionary, const GramBytes& gram, std::size_t k, std::size_t solve_every)
      : dictionary_(dictionary),
        gram_(gram),
        k_(k),
        schedule_{k, solve_every},
        support_(k),
        scratch_(k),
        depth_(Candidates::depth(dictionary.n_latents())),
        strongest_(dictionary.bytes().n_groups(depth_)) {}

  // x: a vector of unit norm, and its products with the dictionary, which are changed. Writes as Support::write does.
  void encode(const float* x, float* products, std::uint16_t* latents, float* values) {
    support_.clear();
    std::size_t next_solve = schedule_.solve_every;
    float negligible = 0.0f;
    for (;;) {
      correlate(products);
      const bool chose = choose(std::min(next_solve, k_), negligible);
      support_.solve(dictionary_, x, negligible, scratch_);
      if (!chose || support_.size() == k_ || support_.unusable().size() >= k_) break;
      if (support_.size() >= next_solve) next_solve = schedule_.after(next_solve);
    }
    support_.write(k_, latents, values, scratch_);
  }

 private:
  static constexpr std::size_t kRows = InterleavedRows::kRows;

  // Finds the strongest correlations with what the values of the support leave of a vector with these products.
  void correlate(float* products) {
    const std::size_t n = support_.size(), stride = dictionary_.stride(), n_fours = (n + kRows - 1) / kRows;
    if (n == 0) own_.clear();
    entries_.resize(std::max(entries_.size(), n_fours * kRows * stride));
    for (std::size_t four = own_.size() / kRows; four < n_fours; ++four) {
      const std::uint8_t* rows[kRows];
      for (std::size_t r = 0; r < kRows; ++r)
        rows[r] = gram_.row(support_.latents()[std::min(four * kRows + r, n - 1)]);
      kernel_.interleave(rows, stride, entries_.data() + four * kRows * stride);
    }
    // Rows lack the diagonal: unless the chosen atoms' own products lose their values here, they hide their groups.
    for (std::size_t i = own_.size(); i < n; ++i) own_.push_back(products[support_.latents()[i]]);
    for (std::size_t i = 0; i < n; ++i) products[support_.latents()[i]] = own_[i] - support_.values()[i];
    weights_.assign(n_fours * kRows, 0.0f);
    for (std::size_t i = 0; i < n; ++i) weights_[i] = -support_.values()[i] * gram_.scale(support_.latents()[i]);
    bytes_.resize(2 * weights_.size());
    const float step = step_of(weights_.data(), weights_.size()), finer = step / InterleavedRows::kFiner;
    float* rest = weights_.data();
    round_to(rest, weights_.size(), step, [step, rest, bytes = bytes_.data()](std::size_t i, float byte) {
      bytes[i] = static_cast<std::int8_t>(byte);
      rest[i] -= byte * step;
    });
    round_to(rest, weights_.size(), finer, [bytes = bytes_.data() + weights_.size()](std::size_t i, float byte) {
      bytes[i] = static_cast<std::int8_t>(byte);
    });
    kernel_.strongest_left(products, stride, {entries_.data(), bytes_.data(), n_fours, step}, depth_,
                           strongest_.data());
  }

  // Chooses atoms until the support has `wanted`, or candidates explain no more. Returns whether it chose any.
  bool choose(std::size_t wanted, float& negligible) {
    candidates_.find(strongest_.data(), strongest_.size(), depth_, Candidates::wanted(wanted - support_.size()),
                     {&support_.latents(), &support_.unusable()});
    const std::size_t n = candidates_.size();
    places_.resize(std::max(n, places_.size()));
    for (std::size_t i = 0; i < n; ++i)
      places_[i] = static_cast<std::uint32_t>(InterleavedRows::place(candidates_.latents()[i]));
    bool chose = false;
    while (support_.size() < wanted) {
      const std::optional<Choice> choice = candidates_.choose(support_, negligible);
      if (!choice) break;
      chose = true;
      if (support_.size() < wanted) take(*choice);
    }
    return chose;
  }

  // Takes a chosen atom times its value from the residual that candidates correlate with.
  void take(const Choice& choice) {
    const std::uint8_t* row = gram_.row(choice.latent);
    const std::size_t n = candidates_.size();
    const std::uint32_t* places = places_.data();
    products_.resize(std::max(n, products_.size()));
    // Gathered apart, so that the rest is done in vectors.
    std::int32_t* products = products_.data();
    for (std::size_t i = 0; i < n; ++i) products[i] = row[places[i]];
    const float factor = choice.value * gram_.scale(choice.latent);
    float* values = candidates_.values();
    for (std::size_t i = 0; i < n; ++i) values[i] -= factor * static_cast<float>(products[i] - ProductRows::kAdded);
  }

  const Kernels& kernel_ = kernels();
  const Dictionary& dictionary_;
  const GramBytes& gram_;
  std::size_t k_;
  Schedule schedule_;
  Support support_;
  Support::Scratch scratch_;
  std::size_t depth_;                     // atoms of a group
  std::vector<std::uint32_t> strongest_;  // (groups), padded with zeros to whole blocks
  Candidates candidates_;
  std::vector<std::uint32_t> places_;  // of the candidates' columns in all rows
  std::vector<std::uint8_t> entries_;  // the rows of the support's atoms, interleaved
  std::vector<float> own_;             // of the vector's products, those with atoms whose rows are
  std::vector<float> weights_;         // of their rows
  std::vector<std::int8_t> bytes_;     // the same in bytes, twice
  std::vector<std::int32_t> products_;
};

}  // namespace compressae
