// NumPy's arrays: borrowed and checked on the way in, handed over without a copy on the way out.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/top_k.hpp"
#include "bindings/gil.hpp"
#include "kernels/kernels.hpp"

namespace compressae::bindings {

namespace nb = nanobind;
using namespace nb::literals;

template <typename T, std::size_t Rank>
using Borrowed = nb::ndarray<const T, nb::ndim<Rank>, nb::c_contig, nb::device::cpu>;

// An array that is read where it is, which no address between two places of its type is.
template <typename T, std::size_t Rank>
struct Input : Borrowed<T, Rank> {
  bool is_aligned() const { return reinterpret_cast<std::uintptr_t>(this->data()) % alignof(T) == 0; }
};

}  // namespace compressae::bindings

namespace nanobind::detail {

template <typename T, std::size_t Rank>
struct type_caster<compressae::bindings::Input<T, Rank>> {
  using Caster = make_caster<compressae::bindings::Borrowed<T, Rank>>;
  using Value = compressae::bindings::Input<T, Rank>;
  static constexpr auto Name = Caster::Name;
  template <typename Wanted>
  using Cast = movable_cast_t<Wanted>;
  template <typename>
  static constexpr bool can_cast() {
    return true;
  }

  bool from_python(handle source, std::uint32_t flags, cleanup_list* cleanup) noexcept {
    Caster caster;
    if (!caster.from_python(source, flags, cleanup)) return false;
    value = Value{std::move(caster.value)};
    return value.is_aligned();
  }
  explicit operator Value*() { return &value; }
  explicit operator Value&() { return value; }
  explicit operator Value&&() { return std::move(value); }

  Value value;
};

}  // namespace nanobind::detail

namespace compressae::bindings {

template <typename T>
using Output = nb::ndarray<nb::numpy, T>;
using Hits = std::pair<Output<float>, Output<std::int64_t>>;
using Arrays = nb::typed<nb::dict, nb::str, nb::any>;
// One bit a document, the lowest of a byte first; None allows all.
using Bitmap = std::optional<Input<std::uint8_t, 1>>;

template <typename T, typename Allocator>
Output<T> to_numpy(std::vector<T, Allocator>&& data, std::initializer_list<std::size_t> shape) {
  auto* owned = new std::vector<T, Allocator>(std::move(data));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T, Allocator>*>(p); });
  return Output<T>(owned->data(), shape, owner);
}

inline void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

inline void require_equal(std::size_t got, std::size_t expected, const std::string& what) {
  require(got == expected, what + " is " + std::to_string(got) + ", expected " + std::to_string(expected));
}

inline void require_latents(std::size_t n_latents) {
  require(n_latents >= 1 && n_latents <= kMaxLatents,
          "n_latents is " + std::to_string(n_latents) + ", expected 1 to " + std::to_string(kMaxLatents));
}

inline void require_nonzeros(std::size_t k, std::size_t n_latents) {
  require_latents(n_latents);
  require(k >= 1 && k <= n_latents,
          "k is " + std::to_string(k) + ", expected 1 to n_latents " + std::to_string(n_latents));
}

inline void require_below(const Input<std::uint16_t, 2>& latents, std::size_t n_latents) {
  // The message is put together only where one is needed: this loop sees every posting.
  for (std::size_t i = 0; i < latents.size(); ++i)
    if (latents.data()[i] >= n_latents)
      throw std::invalid_argument("latent " + std::to_string(latents.data()[i]) + " is outside of n_latents " +
                                  std::to_string(n_latents));
}

// The bits, or null.
inline const std::uint8_t* bits_of(const Bitmap& bitmap, std::size_t n_documents) {
  if (!bitmap) return nullptr;
  require_equal(bitmap->shape(0), (n_documents + 7) / 8, "bytes of the allowed bitmap");
  return bitmap->data();
}

// One array out of a dict, typed; nanobind refuses a wrong dtype, rank or layout.
template <typename T, std::size_t Rank>
Input<T, Rank> take(const nb::dict& arrays, const char* name) {
  require(arrays.contains(name), std::string("the array '") + name + "' is missing");
  Input<T, Rank> array;
  if (!nb::try_cast(arrays[name], array, false))
    throw std::invalid_argument(std::string("the array '") + name +
                                "' has another dtype, rank or layout, or is not aligned in memory");
  return array;
}

// Places for the results of a batch, filled by search(results) without the GIL: (scores, rows), (n_queries, top).
template <typename Search>
Hits searched(std::size_t n_queries, std::size_t top, const Search& search) {
  require(top >= 1, "top is 0, expected at least 1");
  std::vector<float> scores(n_queries * top);
  std::vector<std::int64_t> rows(n_queries * top);
  without_gil([&] { search(Results{scores.data(), rows.data(), top}); });
  return {to_numpy(std::move(scores), {n_queries, top}), to_numpy(std::move(rows), {n_queries, top})};
}

}  // namespace compressae::bindings
