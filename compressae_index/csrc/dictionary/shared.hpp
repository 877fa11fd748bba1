// A dictionary to encode with, which threads share; its parts are made once they are needed.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>

#include "base/per_process.hpp"
#include "dictionary/dictionary.hpp"
#include "dictionary/encoding.hpp"

namespace compressae {

class SharedDictionary {
 public:
  // atoms: (n_latents, dim) rows of unit norm, borrowed.
  SharedDictionary(const float* atoms, std::size_t n_latents, std::size_t dim)
      : atoms_(atoms), n_latents_(n_latents), dim_(dim) {}

  // As in encoding.hpp. in_rounds: whether to take no Gram matrix; by the size of the dictionary if it is not said.
  CodeArrays pursue(const float* vectors, std::size_t n, std::size_t k, std::size_t solve_every,
                    std::size_t num_threads, std::optional<bool> in_rounds) {
    const Dictionary& rounded = dictionary();
    if (in_rounds.value_or(n_latents_ > kMostWithGram))
      return compressae::pursue(rounded, vectors, n, k, solve_every, num_threads);
    const GramBytes& gram = made(gram_, [&] { return new GramBytes(rounded, num_threads); });
    return compressae::pursue(rounded, gram, vectors, n, k, solve_every, num_threads);
  }

 private:
  // A part that the first call makes which needs it.
  template <typename T>
  struct MadeOnce {
    MadeOnce() = default;
    MadeOnce(const MadeOnce&) = delete;
    MadeOnce& operator=(const MadeOnce&) = delete;
    ~MadeOnce() { delete made.load(); }

    std::atomic<const T*> made{nullptr};
  };

  const Dictionary& dictionary() {
    return made(dictionary_, [&] { return new Dictionary(atoms_, n_latents_, dim_); });
  }

  template <typename T, typename Make>
  const T& made(MadeOnce<T>& part, const Make& make) {
    if (const T* made = part.made.load()) return *made;
    // Recursive, as a signal's handler may need the part that it interrupted.
    const std::lock_guard lock(mutex_.get());
    if (part.made.load() == nullptr) {
      std::unique_ptr<const T> mine(make());
      const T* other = nullptr;
      if (part.made.compare_exchange_strong(other, mine.get())) mine.release();
    }
    return *part.made.load();
  }

  const float* atoms_;
  std::size_t n_latents_;
  std::size_t dim_;
  PerProcess<std::recursive_mutex> mutex_;
  MadeOnce<Dictionary> dictionary_;
  MadeOnce<GramBytes> gram_;
};

}  // namespace compressae
