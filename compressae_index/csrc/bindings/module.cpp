// The only file that knows Python: it checks shapes and bounds, keeps borrowed arrays alive, drops the GIL
// around the work, and hands results over without copies.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/huge.hpp"
#include "base/per_process.hpp"
#include "base/strings.hpp"
#include "base/thread_pool.hpp"
#include "base/top_k.hpp"
#include "codes/aligned.hpp"
#include "codes/packed.hpp"
#include "codes/rounding.hpp"
#include "dictionary/dictionary.hpp"
#include "dictionary/pursuit.hpp"
#include "dictionary/rows.hpp"
#include "kernels/dispatch.hpp"
#include "lists/borrowed.hpp"
#include "lists/clusters.hpp"
#include "lists/inverted.hpp"
#include "search/search.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace compressae {

template <typename T, std::size_t Rank>
using Borrowed = nb::ndarray<const T, nb::ndim<Rank>, nb::c_contig, nb::device::cpu>;

// An array that is read where it is, which no address between two places of its type is.
template <typename T, std::size_t Rank>
struct Input : Borrowed<T, Rank> {
  bool is_aligned() const { return reinterpret_cast<std::uintptr_t>(this->data()) % alignof(T) == 0; }
};

}  // namespace compressae

namespace nanobind::detail {

template <typename T, std::size_t Rank>
struct type_caster<compressae::Input<T, Rank>> {
  using Caster = make_caster<compressae::Borrowed<T, Rank>>;
  using Value = compressae::Input<T, Rank>;
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

namespace compressae {
namespace {

template <typename T>
using Output = nb::ndarray<nb::numpy, T>;
using Hits = std::pair<Output<float>, Output<std::int64_t>>;
using Codes = std::pair<Output<std::uint16_t>, Output<float>>;
using Arrays = nb::typed<nb::dict, nb::str, nb::any>;

// Other threads of Python's may run while this lives.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()), outer_(innermost) { innermost = this; }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;
  ~WithoutGil() {
    innermost = outer_;
    take_back();
  }

  // Runs the handlers of signals that came meanwhile. Throws what they raise, as Ctrl-C's raises KeyboardInterrupt.
  static void poll() {
    if (innermost == nullptr) return;
    innermost->take_back();
    const Resumed resumed{*innermost};
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }

 private:
  struct Resumed {
    WithoutGil& that;
    ~Resumed() { that.state_ = PyEval_SaveThread(); }
  };

  // Where Python has ended, it ends a daemon thread here by unwinding its stack, which frames that throw nothing answer
  // by ending the process. Such a thread waits instead, as Python does itself from version 3.14 on.
  void take_back() noexcept {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }

  static inline thread_local WithoutGil* innermost = nullptr;

  PyThreadState* state_;
  WithoutGil* outer_;
};

// Longest projection a gather may read: any 16-bit latent.
constexpr std::size_t kMaxLatents = 65536;

template <typename T, typename Allocator>
Output<T> to_numpy(std::vector<T, Allocator>&& data, std::initializer_list<std::size_t> shape) {
  auto* owned = new std::vector<T, Allocator>(std::move(data));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T, Allocator>*>(p); });
  return Output<T>(owned->data(), shape, owner);
}

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

void require_equal(std::size_t got, std::size_t expected, const std::string& what) {
  require(got == expected, what + " is " + std::to_string(got) + ", expected " + std::to_string(expected));
}

void require_latents(std::size_t n_latents) {
  require(n_latents >= 1 && n_latents <= kMaxLatents,
          "n_latents is " + std::to_string(n_latents) + ", expected 1 to " + std::to_string(kMaxLatents));
}

void require_below(const Input<std::uint16_t, 2>& latents, std::size_t n_latents) {
  // The message is put together only where one is needed: this loop sees every posting.
  for (std::size_t i = 0; i < latents.size(); ++i)
    if (latents.data()[i] >= n_latents)
      throw std::invalid_argument("latent " + std::to_string(latents.data()[i]) + " is outside of n_latents " +
                                  std::to_string(n_latents));
}

using Bitmap = std::optional<Input<std::uint8_t, 1>>;

Allowed to_allowed(const Bitmap& bitmap, std::size_t n_documents) {
  if (!bitmap) return {};
  require_equal(bitmap->shape(0), (n_documents + 7) / 8, "bytes of the allowed bitmap");
  return {bitmap->data()};
}

// What is searched, and among which documents.
Scope scope_of(std::vector<Part>&& parts, std::size_t n_latents, const Bitmap& bitmap) {
  Scope scope{std::move(parts), n_latents, {}, 0};
  scope.allowed = to_allowed(bitmap, scope.n_documents());
  scope.n_allowed = bitmap ? kernels().count_bits(bitmap->data(), bitmap->size()) : scope.n_documents();
  return scope;
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
  {
    const WithoutGil without_gil;
    search(Results{scores.data(), rows.data(), top});
  }
  return {to_numpy(std::move(scores), {n_queries, top}), to_numpy(std::move(rows), {n_queries, top})};
}

// Calls run(begin, end) for every `length` of n rows, without the GIL.
template <typename Run>
void for_each_run(std::size_t n, std::size_t length, std::size_t num_threads, const Run& run) {
  const WithoutGil without_gil;
  ThreadPool::instance().parallel_for((n + length - 1) / length, num_threads, [&](std::size_t number) {
    run(number * length, std::min((number + 1) * length, n));
  });
}

// Rows a task of packing or checking takes.
constexpr std::size_t kPackRows = 1024;

template <typename PackRow>
void for_each_row(std::size_t n, std::size_t num_threads, const PackRow& pack_row) {
  for_each_run(n, kPackRows, num_threads, [&](std::size_t begin, std::size_t end) {
    for (std::size_t row = begin; row < end; ++row) pack_row(row);
  });
}

class InvertedLists {
 public:
  static InvertedLists build(const Input<std::uint16_t, 2>& latents, const Input<float, 2>& values,
                             std::size_t n_latents, std::size_t num_threads) {
    require_latents(n_latents);
    require_equal(values.shape(0), latents.shape(0), "rows of values");
    require_equal(values.shape(1), latents.shape(1), "columns of values");
    require(latents.size() > 0, "codes are empty");
    require_below(latents, n_latents);
    std::optional<InvertedArrays> built;
    {
      const WithoutGil without_gil;
      built = build_inverted(latents.data(), values.data(), latents.shape(0), latents.shape(1), n_latents, num_threads);
    }
    return InvertedLists(std::move(*built), latents.shape(0), n_latents);
  }

  // Windows [first, last) of lists, one after the other.
  static InvertedLists concatenate(
      const std::vector<std::tuple<const InvertedLists*, std::size_t, std::size_t>>& ranges) {
    require(!ranges.empty(), "there are no lists to concatenate");
    const std::size_t n_latents = std::get<0>(ranges.front())->lists_.n_latents;
    std::vector<WindowRange> windows;
    std::size_t n_documents = 0;
    for (const auto& [lists, first, last] : ranges) {
      require_equal(lists->lists_.n_latents, n_latents, "n_latents");
      require(first < last && last <= lists->lists_.n_windows(), "windows are outside of the lists");
      require(n_documents % kWindow == 0, "only the last lists may end within a window");
      windows.push_back({&lists->lists_, first, last});
      n_documents += std::min(last * kWindow, lists->lists_.n_documents) - first * kWindow;
    }
    std::optional<InvertedArrays> joined;
    {
      const WithoutGil without_gil;
      joined = compressae::concatenate(windows, n_latents);
    }
    return InvertedLists(std::move(*joined), n_documents, n_latents);
  }

  InvertedLists(Arrays arrays, std::size_t n_documents, std::size_t n_latents) : arrays_(std::move(arrays)) {
    require_latents(n_latents);
    const auto starts = take<std::uint64_t, 1>(arrays_, "starts");
    const auto offsets = take<std::uint32_t, 2>(arrays_, "offsets");
    const auto scales = take<std::uint16_t, 2>(arrays_, "scales");
    const auto ids = take<std::uint16_t, 1>(arrays_, "ids");
    const auto values = take<std::int8_t, 1>(arrays_, "values");
    const auto largest_norm = take<float, 1>(arrays_, "largest_norm");
    require_equal(largest_norm.shape(0), 1, "length of 'largest_norm'");
    lists_ = {n_documents,   n_latents,  ids.shape(0),  starts.data(),         offsets.data(),
              scales.data(), ids.data(), values.data(), largest_norm.data()[0]};
    require_equal(starts.shape(0), n_latents + 1, "length of 'starts'");
    require_equal(offsets.shape(0), n_latents, "rows of 'offsets'");
    require_equal(offsets.shape(1), lists_.n_windows() + 1, "columns of 'offsets'");
    require_equal(scales.shape(0), n_latents, "rows of 'scales'");
    require_equal(scales.shape(1), lists_.n_windows(), "columns of 'scales'");
    require_equal(values.shape(0), ids.shape(0), "length of 'values'");
    lists_.validate();
    nbytes_ =
        starts.nbytes() + offsets.nbytes() + scales.nbytes() + ids.nbytes() + values.nbytes() + largest_norm.nbytes();
  }

  Hits search(const Input<float, 2>& projections, std::size_t query_nnz, std::size_t top, const Bitmap& bitmap,
              std::size_t num_threads) const {
    require_equal(projections.shape(1), lists_.n_latents, "columns of projections");
    require(query_nnz >= 1, "query_nnz is 0, expected at least 1");
    const Scope scope = scope_of({{&lists_, nullptr, lists_.n_documents, 0}}, lists_.n_latents, bitmap);
    return searched(projections.shape(0), top, [&](const Results& results) {
      search_lists(scope, projections.data(), projections.shape(0), query_nnz, num_threads, results);
    });
  }

  // Throws where they are not of ascending documents, `postings` of each in all.
  void validate(std::size_t postings, std::size_t num_threads) const {
    require_equal(lists_.n_postings, lists_.n_documents * postings, "the number of postings");
    for_each_run(lists_.n_windows(), 1, num_threads, [&](std::size_t w, std::size_t) { lists_.validate_window(w); });
  }

  Output<std::int64_t> list_lengths() const {
    std::vector<std::int64_t> lengths(lists_.n_latents);
    for (std::size_t j = 0; j < lists_.n_latents; ++j)
      lengths[j] = static_cast<std::int64_t>(lists_.starts[j + 1] - lists_.starts[j]);
    return to_numpy(std::move(lengths), {lists_.n_latents});
  }

  Arrays arrays() const { return arrays_; }
  std::size_t nbytes() const { return nbytes_; }
  std::size_t n_documents() const { return lists_.n_documents; }
  const InvertedView& view() const { return lists_; }

 private:
  InvertedLists(InvertedArrays&& built, std::size_t n_documents, std::size_t n_latents)
      : InvertedLists(to_arrays(std::move(built), n_latents), n_documents, n_latents) {}

  static Arrays to_arrays(InvertedArrays&& built, std::size_t n_latents) {
    const std::size_t n_postings = built.ids.size(), n_windows = built.scales.size() / n_latents;
    Arrays arrays;
    arrays["starts"] = to_numpy(std::move(built.starts), {n_latents + 1});
    arrays["offsets"] = to_numpy(std::move(built.offsets), {n_latents, n_windows + 1});
    arrays["scales"] = to_numpy(std::move(built.scales), {n_latents, n_windows});
    arrays["ids"] = to_numpy(std::move(built.ids), {n_postings});
    arrays["values"] = to_numpy(std::move(built.values), {n_postings});
    arrays["largest_norm"] = to_numpy(std::vector<float>{built.largest_norm}, {1});
    return arrays;
  }

  Arrays arrays_;
  InvertedView lists_;
  std::size_t nbytes_ = 0;
};

// Clusters of the first windows of posting lists.
class Clusters {
 public:
  static Clusters build(const InvertedLists& lists, std::size_t n_windows, std::size_t num_threads) {
    const InvertedView& view = lists.view();
    require(n_windows >= 1 && n_windows * kWindow <= view.n_documents,
            std::to_string(n_windows) + " windows of " + std::to_string(view.n_documents) + " documents are not whole");
    std::optional<ClusterArrays> built;
    {
      const WithoutGil without_gil;
      built = build_clusters(view, n_windows, num_threads);
    }
    Arrays arrays;
    arrays["begins"] = to_numpy(std::move(built->begins), {view.n_latents, n_windows, kClusters});
    arrays["means"] = to_numpy(std::move(built->means), {view.n_latents, ClusterView::stride_of(n_windows)});
    arrays["scales"] = to_numpy(std::move(built->scales), {view.n_latents});
    return Clusters(std::move(arrays));
  }

  explicit Clusters(Arrays arrays) : arrays_(std::move(arrays)) {
    const auto begins = take<std::uint16_t, 3>(arrays_, "begins");
    const auto means = take<std::int8_t, 2>(arrays_, "means");
    const auto scales = take<float, 1>(arrays_, "scales");
    view_ = {begins.shape(1), begins.shape(0), begins.data(), means.data(), scales.data()};
    require(view_.n_windows >= 1, "there are no clusters");
    require_equal(begins.shape(2), kClusters, "clusters of a window");
    require_equal(means.shape(0), view_.n_latents, "rows of 'means'");
    require_equal(means.shape(1), view_.stride(), "columns of 'means'");
    require_equal(scales.shape(0), view_.n_latents, "length of 'scales'");
    nbytes_ = begins.nbytes() + means.nbytes() + scales.nbytes();
  }

  // Throws where they are not of the first windows of these lists.
  void validate(const InvertedLists& lists, std::size_t num_threads) const {
    require_equal(lists.view().n_latents, view_.n_latents, "latents of the posting lists");
    require(view_.n_windows * kWindow <= lists.n_documents(), "clusters are of more documents than there are");
    for_each_run(view_.n_latents, 1, num_threads,
                 [&](std::size_t latent, std::size_t) { view_.validate(lists.view(), latent); });
  }

  Arrays arrays() const { return arrays_; }
  std::size_t nbytes() const { return nbytes_; }
  std::size_t size() const { return view_.n_clusters(); }
  std::size_t n_latents() const { return view_.n_latents; }
  const ClusterView& view() const { return view_; }

 private:
  Arrays arrays_;
  ClusterView view_;
  std::size_t nbytes_ = 0;
};

// Posting lists in the memory of another library, which the caller keeps alive and unchanged.
class BorrowedLists {
 public:
  BorrowedLists(const Input<std::uint64_t, 1>& documents, const Input<std::uint64_t, 1>& values,
                const Input<std::int64_t, 1>& counts, std::size_t n_documents)
      : n_documents_(n_documents) {
    const std::size_t n_latents = counts.shape(0);
    require_latents(n_latents);
    require_equal(documents.shape(0), n_latents, "length of documents");
    require_equal(values.shape(0), n_latents, "length of values");
    for (std::size_t j = 0; j < n_latents; ++j) {
      const std::int64_t count = counts.data()[j];
      const std::uint64_t document = documents.data()[j], value = values.data()[j];
      require(count >= 0 && (count == 0 || (document != 0 && value != 0)),
              "list " + std::to_string(j) + " has " + std::to_string(count) + " postings at no address");
      lists_.push_back({reinterpret_cast<const unsigned char*>(document), reinterpret_cast<const unsigned char*>(value),
                        static_cast<std::size_t>(count)});
    }
  }

  // Throws where a list is not of ascending documents that are there, or a value is not finite.
  void validate(std::size_t num_threads) const {
    for_each_run(lists_.size(), 1, num_threads,
                 [&](std::size_t number, std::size_t) { validate_list(lists_[number], n_documents_); });
  }

  Hits search(const Input<std::uint16_t, 2>& latents, const Input<float, 2>& weights, std::size_t top,
              const Bitmap& bitmap, std::size_t num_threads) const {
    const std::size_t width = latents.shape(1);
    require_equal(weights.shape(0), latents.shape(0), "rows of weights");
    require_equal(weights.shape(1), width, "columns of weights");
    require_below(latents, lists_.size());
    const Allowed allowed = to_allowed(bitmap, n_documents_);
    return searched(latents.shape(0), top, [&](const Results& results) {
      ThreadPool::instance().parallel_for(latents.shape(0), num_threads, [&](std::size_t q) {
        // Zeros again after a search that threw.
        thread_local std::vector<float> scores;
        scores.assign(kListWindow, 0.0f);
        std::vector<ListTerm> terms;
        for (std::size_t i = q * width; i < (q + 1) * width; ++i)
          if (weights.data()[i] != 0.0f) terms.push_back({&lists_[latents.data()[i]], weights.data()[i], 0});
        TopK best(top);
        search_borrowed(terms, n_documents_, allowed, scores.data(), best);
        results.write(q, best);
      });
    });
  }

 private:
  std::vector<BorrowedList> lists_;
  std::size_t n_documents_;
};

// The forward part of whichever form.
class ForwardPart : public Forward {
 public:
  Hits search(const Input<float, 2>& projections, std::size_t top, const Bitmap& bitmap,
              std::size_t num_threads) const {
    require_equal(projections.shape(1), n_latents_, "columns of projections");
    const Scope scope = scope_of({{nullptr, this, n_documents(), 0}}, n_latents_, bitmap);
    return searched(projections.shape(0), top, [&](const Results& results) {
      search_dense(scope, projections.data(), projections.shape(0), num_threads, results);
    });
  }

  Hits rescore(const Input<float, 2>& projections, const Input<std::int64_t, 2>& candidates, std::size_t top,
               std::size_t num_threads) const {
    require_equal(projections.shape(1), n_latents_, "columns of projections");
    require_equal(candidates.shape(0), projections.shape(0), "rows of candidates");
    const auto n = static_cast<std::int64_t>(n_documents());
    for (std::size_t i = 0; i < candidates.size(); ++i)
      if (candidates.data()[i] >= n)
        throw std::invalid_argument("candidate " + std::to_string(candidates.data()[i]) + " is outside of " +
                                    std::to_string(n) + " documents");
    const std::vector<Part> parts{{nullptr, this, n_documents(), 0}};
    return searched(projections.shape(0), top, [&](const Results& results) {
      search_candidates(parts, projections.data(), n_latents_, candidates.data(), projections.shape(0),
                        candidates.shape(1), num_threads, results);
    });
  }

  Arrays arrays() const { return arrays_; }
  std::size_t nbytes() const { return nbytes_; }
  std::size_t n_latents() const { return n_latents_; }
  virtual std::size_t n_documents() const = 0;
  virtual std::size_t k() const = 0;
  // Throws where a row is not a code.
  virtual void validate(std::size_t num_threads) const = 0;

 protected:
  ForwardPart(Arrays arrays, std::size_t n_latents) : arrays_(std::move(arrays)), n_latents_(n_latents) {
    require_latents(n_latents);
  }

  Arrays arrays_;
  std::size_t n_latents_;
  std::size_t nbytes_ = 0;
};

// Codes is ForwardView or PackedView.
template <typename Codes>
class CodesPart : public ForwardPart {
 public:
  void scan(const float* u, std::size_t first, std::size_t last, const Allowed& allowed, std::int64_t first_row,
            TopK& top_k) const override {
    scan_forward(codes_, u, first, last, allowed, first_row, top_k);
  }
  void rescore(const float* u, const std::int64_t* rows, std::size_t n, std::int64_t first_row,
               TopK& top_k) const override {
    rescore_forward(codes_, u, rows, n, first_row, top_k);
  }
  using ForwardPart::rescore;
  std::size_t n_documents() const override { return codes_.n_documents; }
  std::size_t k() const override { return codes_.k; }
  void validate(std::size_t num_threads) const override {
    for_each_row(n_documents(), num_threads, [&](std::size_t row) {
      if (!codes_.is_whole(row, n_latents_))
        throw std::invalid_argument("row " + std::to_string(row) +
                                    " of the codes is not of ascending latents below n_latents " +
                                    std::to_string(n_latents_) + " and finite values");
    });
  }

 protected:
  using ForwardPart::ForwardPart;

  Codes codes_;
};

class ForwardCodes : public CodesPart<ForwardView> {
 public:
  ForwardCodes(Arrays arrays, std::size_t n_latents) : CodesPart(std::move(arrays), n_latents) {
    const auto latents = take<std::uint16_t, 2>(arrays_, "latents");
    const auto values = take<std::int8_t, 2>(arrays_, "values");
    const auto scales = take<std::uint16_t, 1>(arrays_, "scales");
    codes_ = {latents.shape(0), latents.shape(1), latents.data(), values.data(), scales.data()};
    require(codes_.k >= 1, "codes have 0 nonzeros");
    require_equal(values.shape(0), codes_.n_documents, "rows of 'values'");
    require_equal(values.shape(1), codes_.k, "columns of 'values'");
    require_equal(scales.shape(0), codes_.n_documents, "length of 'scales'");
    nbytes_ = latents.nbytes() + values.nbytes() + scales.nbytes();
  }
};

// Searches parts, (lists, codes) each, all but the last of whole windows. With stage_one (n_queries, n_latents) by
// posting lists first, then the candidates by their codes; with stage_two alone every document by its codes. With
// clusters, posting lists are read of the nprobe best of them alone.
Hits search(const std::vector<std::pair<const InvertedLists*, const ForwardPart*>>& pairs,
            const std::optional<Input<float, 2>>& stage_one, const std::optional<Input<float, 2>>& stage_two,
            std::size_t query_nnz, std::size_t candidates, std::size_t top, const Bitmap& bitmap,
            std::size_t num_threads, const Clusters* clusters, std::size_t nprobe) {
  require(!pairs.empty(), "there are no parts to search");
  require(stage_one || stage_two, "there are no projections");
  require(query_nnz >= 1, "query_nnz is 0, expected at least 1");
  require(candidates >= 1, "candidates is 0, expected at least 1");
  const std::size_t n_latents = pairs.front().second->n_latents();
  std::vector<Part> parts;
  std::size_t n_documents = 0;
  for (const auto& [lists, codes] : pairs) {
    require_equal(lists->n_documents(), codes->n_documents(), "documents of the posting lists");
    require_equal(lists->view().n_latents, n_latents, "latents of the posting lists");
    require_equal(codes->n_latents(), n_latents, "latents of the codes");
    require(n_documents % kWindow == 0, "only the last part may end within a window");
    parts.push_back({&lists->view(), codes, codes->n_documents(), n_documents});
    n_documents += codes->n_documents();
  }
  Scope scope = scope_of(std::move(parts), n_latents, bitmap);
  if (clusters != nullptr) {
    require(nprobe >= 1, "nprobe is 0, expected at least 1");
    require_equal(clusters->view().n_latents, n_latents, "latents of the clusters");
    require(clusters->view().n_windows * kWindow <= n_documents, "clusters are of more documents than there are");
    scope.clusters = &clusters->view();
    scope.nprobe = nprobe;
  }
  const std::size_t n_queries = (stage_one ? stage_one : stage_two)->shape(0);
  for (const auto* projections : {&stage_one, &stage_two})
    if (*projections) {
      require_equal((*projections)->shape(0), n_queries, "rows of projections");
      require_equal((*projections)->shape(1), n_latents, "columns of projections");
    }
  return searched(n_queries, top, [&](const Results& results) {
    if (!stage_one)
      search_dense(scope, stage_two->data(), n_queries, num_threads, results);
    else
      search_two_stage(scope, stage_one->data(), stage_two ? stage_two->data() : nullptr, n_queries, query_nnz,
                       candidates, num_threads, results);
  });
}

void require_nonzeros(std::size_t k, std::size_t n_latents) {
  require_latents(n_latents);
  require(k >= 1 && k <= n_latents,
          "k is " + std::to_string(k) + ", expected 1 to n_latents " + std::to_string(n_latents));
}

PackedLayout checked_layout(std::size_t n_latents, std::size_t k, std::size_t value_bits) {
  require_nonzeros(k, n_latents);
  require(value_bits >= 4 && value_bits <= 8, "value_bits is " + std::to_string(value_bits) + ", expected 4 to 8");
  return packed_layout(n_latents, k, value_bits);
}

// Value bits that levels, ascending within [0, 1], are the codebook of.
std::size_t value_bits_of(const Input<float, 1>& levels) {
  std::size_t value_bits = 4;
  while (value_bits < 8 && levels.shape(0) > std::size_t{1} << (value_bits - 1)) ++value_bits;
  require(levels.shape(0) == std::size_t{1} << (value_bits - 1),
          "length of levels is " + std::to_string(levels.shape(0)) + ", expected 8, 16, 32, 64 or 128");
  float previous = 0.0f;
  for (std::size_t i = 0; i < levels.shape(0); previous = levels.data()[i++])
    require(levels.data()[i] >= previous && levels.data()[i] <= 1.0f, "levels must ascend within [0, 1]");
  return value_bits;
}

class PackedCodes : public CodesPart<PackedView> {
 public:
  PackedCodes(Arrays arrays, const Input<float, 1>& levels, std::size_t n_latents, std::size_t k)
      : CodesPart(std::move(arrays), n_latents) {
    PackedLayout layout = checked_layout(n_latents, k, value_bits_of(levels));
    set_levels(layout, levels.data());
    const auto rows = take<std::uint8_t, 2>(arrays_, "rows");
    require_equal(rows.shape(1), layout.row_bytes, "columns of 'rows'");
    codes_ = PackedView(layout, rows.data(), rows.shape(0));
    nbytes_ = rows.nbytes() + levels.nbytes();
  }
};

std::size_t first_without_direction_of(const Input<float, 2>& rows, float smallest) {
  const WithoutGil without_gil;
  return first_without_direction(rows.data(), rows.shape(0), rows.shape(1), smallest);
}

Output<float> directions(const Input<float, 2>& rows) {
  const std::size_t n = rows.shape(0), dim = rows.shape(1);
  std::vector<float> result(n * dim);
  {
    const WithoutGil without_gil;
    for (std::size_t r = 0; r < n; ++r) write_direction(rows.data() + r * dim, dim, result.data() + r * dim);
  }
  return to_numpy(std::move(result), {n, dim});
}

// Strings that are not counted repeat nothing.
std::size_t first_repeated_of(const Input<std::uint8_t, 1>& text, const Input<std::int64_t, 1>& ends,
                              const std::optional<Input<bool, 1>>& counted) {
  require(ends.shape(0) >= 1, "there are no ends");
  const std::size_t n = ends.shape(0) - 1;
  require(std::is_sorted(ends.data(), ends.data() + n + 1) && ends.data()[0] == 0 &&
              static_cast<std::size_t>(ends.data()[n]) == text.shape(0),
          "ends do not ascend from 0 to the length of the text");
  if (counted) require_equal(counted->shape(0), n, "length of counted");
  const WithoutGil without_gil;
  return first_repeated(reinterpret_cast<const char*>(text.data()), ends.data(), n,
                        counted ? counted->data() : nullptr);
}

// Norms of the reconstructions, the sums of values times rows of the dictionary.
Output<float> code_norms(const Input<std::uint16_t, 2>& latents, const Input<float, 2>& values,
                         const Input<float, 2>& dictionary, std::size_t num_threads) {
  const std::size_t n = latents.shape(0), k = latents.shape(1), n_latents = dictionary.shape(0),
                    dim = dictionary.shape(1);
  require_equal(values.shape(0), n, "rows of values");
  require_equal(values.shape(1), k, "columns of values");
  require_below(latents, n_latents);
  std::vector<float> norms(n);
  for_each_row(n, num_threads, [&](std::size_t row) {
    thread_local std::vector<float> sum;
    sum.assign(dim, 0.0f);
    for (std::size_t i = row * k; i < (row + 1) * k; ++i) {
      const float* atom = dictionary.data() + latents.data()[i] * dim;
      const float value = values.data()[i];
      for (std::size_t d = 0; d < dim; ++d) sum[d] += value * atom[d];
    }
    norms[row] = std::sqrt(kernels().dot(sum.data(), sum.data(), dim));
  });
  return to_numpy(std::move(norms), {n});
}

Output<std::uint8_t> quantize(const Input<std::uint16_t, 2>& latents, const Input<float, 2>& values,
                              const Input<std::uint16_t, 1>& scales, const Input<float, 1>& levels,
                              const std::optional<Input<float, 2>>& dictionary, std::size_t num_threads) {
  const std::size_t n = values.shape(0), k = values.shape(1);
  require_equal(latents.shape(0), n, "rows of latents");
  require_equal(latents.shape(1), k, "columns of latents");
  require_equal(scales.shape(0), n, "length of scales");
  value_bits_of(levels);
  const Quantizer quantizer(levels.data(), levels.shape(0));
  std::vector<std::uint8_t> codes(n * k);
  if (!dictionary) {
    for_each_row(n, num_threads, [&](std::size_t row) {
      for (std::size_t i = row * k; i < (row + 1) * k; ++i)
        codes[i] = quantizer.code(values.data()[i], scales.data()[row]);
    });
  } else {
    require_below(latents, dictionary->shape(0));
    for_each_run(n, kPackRows, num_threads, [&](std::size_t begin, std::size_t end) {
      PlaneRounder rounder(quantizer, dictionary->data(), dictionary->shape(1), k);
      for (std::size_t row = begin; row < end; ++row)
        rounder.quantize(latents.data() + row * k, values.data() + row * k, k, scales.data()[row],
                         codes.data() + row * k);
    });
  }
  return to_numpy(std::move(codes), {n, k});
}

Output<std::uint8_t> pack_rows(const Input<std::uint16_t, 2>& latents, const Input<std::uint8_t, 2>& codes,
                               const Input<std::uint16_t, 1>& scales, std::size_t n_latents, std::size_t value_bits,
                               std::size_t num_threads) {
  const std::size_t n = latents.shape(0), k = latents.shape(1);
  const PackedLayout layout = checked_layout(n_latents, k, value_bits);
  require_equal(codes.shape(0), n, "rows of codes");
  require_equal(codes.shape(1), k, "columns of codes");
  require_equal(scales.shape(0), n, "length of scales");
  HugeVector<std::uint8_t> rows(n * layout.row_bytes);
  for_each_row(n, num_threads, [&](std::size_t row) {
    const std::uint16_t* latent = latents.data() + row * k;
    const std::uint8_t* code = codes.data() + row * k;
    for (std::size_t i = 0; i < k; ++i) {
      // Messages are put together only where one is needed: this is the innermost loop.
      if (latent[i] >= n_latents || (i > 0 && latent[i] <= latent[i - 1]))
        throw std::invalid_argument("latents of row " + std::to_string(row) + " do not ascend below n_latents " +
                                    std::to_string(n_latents));
      if (code[i] >> value_bits != 0)
        throw std::invalid_argument("a code of row " + std::to_string(row) + " is " + std::to_string(code[i]) +
                                    ", more than value_bits hold");
    }
    pack_row(layout, latent, code, scales.data()[row], rows.data() + row * layout.row_bytes);
  });
  return to_numpy(std::move(rows), {n, layout.row_bytes});
}

std::tuple<Output<std::uint16_t>, Output<std::uint8_t>, Output<std::uint16_t>> unpack_rows(
    const Input<std::uint8_t, 2>& rows, std::size_t n_latents, std::size_t k, std::size_t value_bits,
    std::size_t num_threads) {
  const std::size_t n = rows.shape(0);
  const PackedLayout layout = checked_layout(n_latents, k, value_bits);
  require_equal(rows.shape(1), layout.row_bytes, "columns of rows");
  const PackedView packed(layout, rows.data(), n);
  std::vector<std::uint16_t> latents(n * k), scales(n);
  std::vector<std::uint8_t> codes(n * k);
  for_each_row(n, num_threads, [&](std::size_t row) {
    if (!unpack_row(layout, n_latents, packed.row(row), latents.data() + row * k, codes.data() + row * k, scales[row]))
      throw std::invalid_argument("row " + std::to_string(row) + " of the packed codes is damaged");
  });
  return {to_numpy(std::move(latents), {n, k}), to_numpy(std::move(codes), {n, k}), to_numpy(std::move(scales), {n})};
}

// Rows that an encoder takes at a time.
constexpr std::size_t kEncodeRows = Dictionary::kTile;

template <typename EncodeRows>
Codes encode_batch(std::size_t rows, std::size_t k, std::size_t num_threads, const EncodeRows& encode_rows) {
  std::vector<std::uint16_t> latents(rows * k);
  std::vector<float> values(rows * k);
  for_each_run(rows, kEncodeRows, num_threads,
               [&](std::size_t begin, std::size_t end) { encode_rows(begin, end, latents.data(), values.data()); });
  return {to_numpy(std::move(latents), {rows, k}), to_numpy(std::move(values), {rows, k})};
}

// Dimensions that no sum of products of bytes overflows 32 bits by.
constexpr std::size_t kMaxDim = 65536;

// Vectors whose products with a dictionary are taken at once, so that its rows are read once for all.
constexpr std::size_t kProjectedRows = 48;

// A dictionary, and what projections and pursuit need of it once they are asked for.
class DictionaryBinding {
 public:
  explicit DictionaryBinding(Input<float, 2> atoms) : atoms_(std::move(atoms)) {
    require_latents(n_latents());
    require(dim() >= 1 && dim() <= kMaxDim,
            "atoms have " + std::to_string(dim()) + " dimensions, expected 1 to " + std::to_string(kMaxDim));
  }

  std::pair<Output<float>, std::optional<Output<float>>> project(const Input<float, 2>& vectors,
                                                                 const std::optional<Input<float, 1>>& mean,
                                                                 std::size_t num_threads) {
    require_equal(vectors.shape(1), dim(), "columns of vectors");
    if (mean) require_equal(mean->shape(0), dim(), "length of mean");
    const std::size_t n = vectors.shape(0);
    const Dictionary& dictionary = rounded();
    const Projection& projection = made(projection_, [&] { return new Projection(dictionary); });
    std::vector<float> projections(n * n_latents()), on_mean(mean ? n : 0);
    for_each_run(n, kProjectedRows, num_threads, [&](std::size_t begin, std::size_t end) {
      std::vector<float> unit((end - begin) * dim());
      for (std::size_t row = begin; row < end; ++row) {
        float* direction = unit.data() + (row - begin) * dim();
        write_direction(vectors.data() + row * dim(), dim(), direction);
        if (mean) on_mean[row] = kernels().dot(direction, mean->data(), dim());
      }
      projection.add(unit.data(), end - begin, projections.data() + begin * n_latents());
    });
    std::optional<Output<float>> mean_scores;
    if (mean) mean_scores = to_numpy(std::move(on_mean), {n, 1});
    return {to_numpy(std::move(projections), {n, n_latents()}), mean_scores};
  }

  Codes pursue(const Input<float, 2>& vectors, std::size_t k, std::size_t solve_every, std::size_t num_threads) {
    require_nonzeros(k, n_latents());
    require_equal(vectors.shape(1), dim(), "columns of vectors");
    require(solve_every >= 1, "solve_every is 0, expected at least 1");
    const Dictionary& dictionary = rounded();
    const GramBytes& gram = made(gram_, [&] { return new GramBytes(dictionary, num_threads); });
    return encode_batch(vectors.shape(0), k, num_threads,
                        [&](std::size_t begin, std::size_t end, std::uint16_t* latents, float* values) {
                          Pursuit encoder(dictionary, gram, k, solve_every);
                          const float* products = products_of(dictionary, vectors.data() + begin * dim(), end - begin);
                          for (std::size_t row = begin; row < end; ++row, products += dictionary.stride())
                            encoder.encode(vectors.data() + row * dim(), products, latents + row * k, values + row * k);
                        });
  }

 private:
  std::size_t n_latents() const { return atoms_.shape(0); }
  std::size_t dim() const { return atoms_.shape(1); }

  const Dictionary& rounded() {
    return made(dictionary_, [&] { return new Dictionary(atoms_.data(), n_latents(), dim()); });
  }

  // Rounded products of at most kEncodeRows vectors with all atoms, until the thread asks for others.
  static const float* products_of(const Dictionary& dictionary, const float* vectors, std::size_t n) {
    thread_local std::vector<float> products;
    products.resize(kEncodeRows * dictionary.stride());
    dictionary.products(vectors, n, products.data());
    return products.data();
  }

  // A part that the first call makes which needs it.
  template <typename T>
  struct MadeOnce {
    MadeOnce() = default;
    MadeOnce(const MadeOnce&) = delete;
    MadeOnce& operator=(const MadeOnce&) = delete;
    ~MadeOnce() { delete made.load(); }

    std::atomic<const T*> made{nullptr};
  };

  template <typename T, typename Make>
  const T& made(MadeOnce<T>& part, const Make& make) {
    if (const T* made = part.made.load()) return *made;
    const WithoutGil without_gil;
    // Recursive, as a signal's handler may need the part that it interrupted.
    const std::lock_guard lock(mutex_.get());
    if (part.made.load() == nullptr) {
      std::unique_ptr<const T> mine(make());
      const T* other = nullptr;
      if (part.made.compare_exchange_strong(other, mine.get())) mine.release();
    }
    return *part.made.load();
  }

  Input<float, 2> atoms_;
  PerProcess<std::recursive_mutex> mutex_;
  MadeOnce<Dictionary> dictionary_;
  MadeOnce<Projection> projection_;
  MadeOnce<GramBytes> gram_;
};

Codes top_k_codes(const Input<float, 2>& activations, std::size_t k, std::size_t num_threads) {
  const std::size_t n_latents = activations.shape(1);
  require_nonzeros(k, n_latents);
  return encode_batch(activations.shape(0), k, num_threads,
                      [&](std::size_t begin, std::size_t end, std::uint16_t* latents, float* values) {
                        std::vector<std::uint16_t> order;
                        for (std::size_t row = begin; row < end; ++row)
                          top_k_abs(activations.data() + row * n_latents, n_latents, k, order, latents + row * k,
                                    values + row * k);
                      });
}

}  // namespace
}  // namespace compressae

NB_MODULE(_engine, m) {
  using namespace compressae;
  m.doc() = "The search engine: posting lists, forward codes, re-scoring, pursuit.";
  // What daemon threads hold when Python ends is no leak.
  nb::set_leak_warnings(false);
  ThreadPool::set_poll(&WithoutGil::poll);
  ThreadPool::instance();  // now, as a fork may come while another thread is at its first search

  m.def("simd", &simd_name, "Instruction set in use: avx512vbmi, avx512, avx2 or plain (COMPRESSAE_SIMD forces one).");
  m.def("first_without_direction", &first_without_direction_of, "rows"_a.noconvert(), "smallest"_a,
        "First row (n, dim) that is not finite, or holds nothing as large as `smallest`; n where there is none.");
  m.def(
      "first_repeated", &first_repeated_of, "text"_a.noconvert(), "ends"_a.noconvert(), "counted"_a.noconvert().none(),
      "First of the strings text[ends[i]:ends[i + 1]] that equals one before it, or their number; of those alone that\n"
      "are `counted`, if given.");
  m.def("directions", &directions, "rows"_a.noconvert(), "Rows (n, dim), none of them zero, divided by their norms.");
  nb::class_<DictionaryBinding>(m, "Dictionary", "A dictionary (n_latents, dim) of unit rows, which is borrowed.")
      .def(nb::init<Input<float, 2>>(), "atoms"_a.noconvert())
      .def("project", &DictionaryBinding::project, "vectors"_a.noconvert(), "mean"_a.noconvert().none(),
           "num_threads"_a,
           "Products of the directions of vectors (n, dim) with all rows, (n, n_latents), and with a mean (dim), if\n"
           "any, (n, 1). Rows that are multiples of bytes are read as such, others at two bytes an entry.")
      .def("pursue", &DictionaryBinding::pursue, "vectors"_a.noconvert(), "k"_a, "solve_every"_a, "num_threads"_a,
           "Codes of unit rows (n, dim) by orthogonal matching pursuit: (latents, values), (n, k).");
  m.def("top_k_codes", &top_k_codes, "activations"_a.noconvert(), "k"_a, "num_threads"_a,
        "The k largest absolute entries of each row, signed, sorted by latent: (latents, values), (n, k).");

  nb::class_<InvertedLists>(m, "InvertedLists", "The inverted part: posting lists by window and latent.")
      .def(nb::init<Arrays, std::size_t, std::size_t>(), "arrays"_a, "n_documents"_a, "n_latents"_a)
      .def_static("build", &InvertedLists::build, "latents"_a.noconvert(), "values"_a.noconvert(), "n_latents"_a,
                  "num_threads"_a)
      .def_static("concatenate", &InvertedLists::concatenate, "ranges"_a,
                  "Windows [first, last) of lists, (lists, first, last) each, one after the other.")
      .def("search", &InvertedLists::search, "projections"_a.noconvert(), "query_nnz"_a, "top"_a,
           "allowed"_a.noconvert().none(), "num_threads"_a,
           "Best documents by the query_nnz largest entries of each projection, summed up in 16 bits:\n"
           "(scores, rows), (n_queries, top).")
      .def("validate", &InvertedLists::validate, "postings"_a, "num_threads"_a,
           "Raises ValueError where lists are not of ascending documents, `postings` of each in all, or their norms "
           "are\n"
           "larger than the largest.")
      .def("list_lengths", &InvertedLists::list_lengths)
      .def("arrays", &InvertedLists::arrays)
      .def_prop_ro("nbytes", &InvertedLists::nbytes)
      .def_prop_ro("n_documents", &InvertedLists::n_documents);

  nb::class_<Clusters>(m, "Clusters",
                       "Runs of documents that are alike: where they stand in posting lists, and their means.")
      .def(nb::init<Arrays>(), "arrays"_a)
      .def_static("build", &Clusters::build, "lists"_a, "n_windows"_a, "num_threads"_a,
                  "Of the first windows of posting lists.")
      .def("validate", &Clusters::validate, "lists"_a, "num_threads"_a,
           "Raises ValueError where clusters do not begin where they do in these lists, or scales are not finite.")
      .def("arrays", &Clusters::arrays)
      .def("__len__", &Clusters::size)
      .def_prop_ro("nbytes", &Clusters::nbytes)
      .def_prop_ro("n_latents", &Clusters::n_latents);

  nb::class_<BorrowedLists>(m, "BorrowedLists",
                            "Posting lists in another library's memory, which must outlive this object unchanged.")
      .def(nb::init<const Input<std::uint64_t, 1>&, const Input<std::uint64_t, 1>&, const Input<std::int64_t, 1>&,
                    std::size_t>(),
           "documents"_a.noconvert(), "values"_a.noconvert(), "counts"_a.noconvert(), "n_documents"_a,
           "From the addresses (n_latents,) of each list's documents, int64 and ascending, and of its values, half\n"
           "precision, and the postings (n_latents,) that stand there.")
      .def("validate", &BorrowedLists::validate, "num_threads"_a,
           "Raises ValueError where a list is not of ascending documents below n_documents and finite values.")
      .def("search", &BorrowedLists::search, "latents"_a.noconvert(), "weights"_a.noconvert(), "top"_a,
           "allowed"_a.noconvert().none(), "num_threads"_a,
           "Best documents by terms (n_queries, m), of which a latent stands once in a row: (scores, rows),\n"
           "(n_queries, top).");

  m.def("code_norms", &code_norms, "latents"_a.noconvert(), "values"_a.noconvert(), "dictionary"_a.noconvert(),
        "num_threads"_a, "Norms of the reconstructions of codes (n, k) over a dictionary (n_latents, dim): (n,).");
  m.def("quantize", &quantize, "latents"_a.noconvert(), "values"_a.noconvert(), "scales"_a.noconvert(),
        "levels"_a.noconvert(), "dictionary"_a.noconvert().none(), "num_threads"_a,
        "Codes of values (n, k) relative to the half-precision scales (n,), whose sign bit marks short rows: a sign\n"
        "bit above the index of the nearest level. With a dictionary (n_latents, dim), values make up for what the\n"
        "rounding of others did to the reconstruction.");
  m.def("pack_rows", &pack_rows, "latents"_a.noconvert(), "codes"_a.noconvert(), "scales"_a.noconvert(), "n_latents"_a,
        "value_bits"_a, "num_threads"_a, "Latents and codes (n, k) and scales (n,) as packed rows (n, row_bytes).");
  m.def("unpack_rows", &unpack_rows, "rows"_a.noconvert(), "n_latents"_a, "k"_a, "value_bits"_a, "num_threads"_a,
        "What was given to pack_rows: (latents, codes, scales).");

  nb::class_<ForwardPart>(m, "Forward", "The forward part: a document's code, row by row.")
      .def("search", &ForwardPart::search, "projections"_a.noconvert(), "top"_a, "allowed"_a.noconvert().none(),
           "num_threads"_a, "Best documents by whole projections: (scores, rows), (n_queries, top).")
      .def(
          "rescore",
          [](const ForwardPart& codes, const Input<float, 2>& projections, const Input<std::int64_t, 2>& candidates,
             std::size_t top,
             std::size_t num_threads) { return codes.rescore(projections, candidates, top, num_threads); },
          "projections"_a.noconvert(), "candidates"_a.noconvert(), "top"_a, "num_threads"_a,
          "Best of the candidate rows (-1: none): (scores, rows), (n_queries, top).")
      .def("validate", &ForwardPart::validate, "num_threads"_a,
           "Raises ValueError where a row is not of ascending latents and finite values.")
      .def("arrays", &ForwardPart::arrays)
      .def_prop_ro("nbytes", &ForwardPart::nbytes)
      .def_prop_ro("n_documents", &ForwardPart::n_documents)
      .def_prop_ro("k", &ForwardPart::k);
  nb::class_<ForwardCodes, ForwardPart>(m, "ForwardCodes", "The aligned forward part: k latents and values a row.")
      .def(nb::init<Arrays, std::size_t>(), "arrays"_a, "n_latents"_a);
  nb::class_<PackedCodes, ForwardPart>(m, "PackedCodes", "The packed forward part: row_bytes bytes a row.")
      .def(nb::init<Arrays, const Input<float, 1>&, std::size_t, std::size_t>(), "arrays"_a, "levels"_a.noconvert(),
           "n_latents"_a, "k"_a);

  m.def("search", &search, "parts"_a, "stage_one"_a.noconvert().none(), "stage_two"_a.noconvert().none(), "query_nnz"_a,
        "candidates"_a, "top"_a, "allowed"_a.noconvert().none(), "num_threads"_a, "clusters"_a.none() = nb::none(),
        "nprobe"_a = 0,
        "Best documents of parts, (lists, codes) each: (scores, rows), (n_queries, top). With projections stage_one,\n"
        "the best candidates by the posting lists of their query_nnz largest entries are scored by their codes: with\n"
        "the projections stage_two, or with those entries alone. With stage_two alone every document is. With clusters "
        "of\n"
        "the first windows, posting lists are read of the nprobe whose means score best, and behind all clusters.");
}
