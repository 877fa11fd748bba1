#include "bindings/lists.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/families.hpp"
#include "lists/borrowed.hpp"
#include "search/search.hpp"

namespace compressae::bindings {

InvertedLists InvertedLists::build(const Input<std::uint16_t, 2>& latents, const Input<float, 2>& values,
                                   std::size_t n_latents, std::size_t num_threads,
                                   const std::optional<Input<bool, 2>>& kept) {
  require_latents(n_latents);
  require_equal(values.shape(0), latents.shape(0), "rows of values");
  require_equal(values.shape(1), latents.shape(1), "columns of values");
  require(latents.size() > 0, "codes are empty");
  require_below(latents, n_latents);
  const std::size_t n = latents.shape(0), k = latents.shape(1);
  if (kept) {
    require_equal(kept->shape(0), n, "rows of kept");
    require_equal(kept->shape(1), k, "columns of kept");
  }
  const ListedCodes codes{latents.data(), values.data(), kept ? kept->data() : nullptr, n, k};
  return from_built(without_gil([&] { return build_inverted(codes, n_latents, num_threads); }), n, n_latents);
}

InvertedLists InvertedLists::concatenate(const std::vector<Range>& ranges) {
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
  return from_built(without_gil([&] { return compressae::concatenate(windows, n_latents); }), n_documents, n_latents);
}

InvertedLists::InvertedLists(Arrays arrays, std::size_t n_documents, std::size_t n_latents)
    : arrays_(std::move(arrays)) {
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

Hits InvertedLists::search(const Input<float, 2>& projections, std::size_t query_nnz, std::size_t top,
                           const Bitmap& bitmap, std::size_t num_threads, const ForwardPart* codes, bool damped) const {
  std::size_t n_entries = lists_.n_latents;
  if (codes != nullptr) {
    require_equal(codes->n_documents(), n_documents(), "documents of the codes");
    require_equal(codes->n_latents(), lists_.n_latents, "latents of the codes");
    n_entries = codes->n_entries();
  }
  require_equal(projections.shape(1), n_entries, "columns of projections");
  require(query_nnz >= 1, "query_nnz is 0, expected at least 1");
  const Scope scope = scope_of({{&lists_, codes == nullptr ? nullptr : &codes->codes(), n_documents(), 0}}, n_entries,
                               bits_of(bitmap, n_documents()));
  return searched(projections.shape(0), top, [&](const Results& results) {
    search_lists(scope, projections.data(), projections.shape(0), query_nnz, num_threads, damped, results);
  });
}

void InvertedLists::validate(std::size_t fewest, std::size_t most, std::size_t num_threads) const {
  const std::size_t n = lists_.n_documents, postings = lists_.n_postings;
  require(n * fewest <= postings && postings <= n * most,
          "the number of postings is " + std::to_string(postings) + ", expected " + std::to_string(fewest) + " to " +
              std::to_string(most) + " of each of " + std::to_string(n) + " documents");
  without_gil([&] { lists_.validate_windows(num_threads); });
}

Output<std::int64_t> InvertedLists::list_lengths() const { return to_numpy(lists_.lengths(), {lists_.n_latents}); }

InvertedLists InvertedLists::from_built(InvertedArrays&& built, std::size_t n_documents, std::size_t n_latents) {
  const std::size_t n_postings = built.ids.size(), n_windows = built.scales.size() / n_latents;
  Arrays arrays;
  arrays["starts"] = to_numpy(std::move(built.starts), {n_latents + 1});
  arrays["offsets"] = to_numpy(std::move(built.offsets), {n_latents, n_windows + 1});
  arrays["scales"] = to_numpy(std::move(built.scales), {n_latents, n_windows});
  arrays["ids"] = to_numpy(std::move(built.ids), {n_postings});
  arrays["values"] = to_numpy(std::move(built.values), {n_postings});
  arrays["largest_norm"] = to_numpy(std::vector<float>{built.largest_norm}, {1});
  return InvertedLists(std::move(arrays), n_documents, n_latents);
}

namespace {

// Posting lists in the memory of another library, which the caller keeps alive and unchanged.
class BorrowedLists {
 public:
  BorrowedLists(const Input<std::uint64_t, 1>& documents, const Input<std::uint64_t, 1>& values,
                const Input<std::int64_t, 1>& counts, std::size_t n_documents)
      : lists_{{}, n_documents} {
    const std::size_t n_latents = counts.shape(0);
    require_latents(n_latents);
    require_equal(documents.shape(0), n_latents, "length of documents");
    require_equal(values.shape(0), n_latents, "length of values");
    for (std::size_t j = 0; j < n_latents; ++j) {
      const std::int64_t count = counts.data()[j];
      const std::uint64_t document = documents.data()[j], value = values.data()[j];
      require(count >= 0 && (count == 0 || (document != 0 && value != 0)),
              "list " + std::to_string(j) + " has " + std::to_string(count) + " postings at no address");
      lists_.lists.push_back({reinterpret_cast<const unsigned char*>(document),
                              reinterpret_cast<const unsigned char*>(value), static_cast<std::size_t>(count)});
    }
  }

  // Throws if a list does not ascend or names a document that does not exist, or if a value is not finite.
  void validate(std::size_t num_threads) const {
    without_gil([&] { lists_.validate(num_threads); });
  }

  Hits search(const Input<std::uint16_t, 2>& latents, const Input<float, 2>& weights, std::size_t top,
              const Bitmap& bitmap, std::size_t num_threads) const {
    const std::size_t n_queries = latents.shape(0), width = latents.shape(1);
    require_equal(weights.shape(0), n_queries, "rows of weights");
    require_equal(weights.shape(1), width, "columns of weights");
    require_below(latents, lists_.lists.size());
    const Allowed allowed{bits_of(bitmap, lists_.n_documents)};
    return searched(n_queries, top, [&](const Results& results) {
      lists_.search(latents.data(), weights.data(), n_queries, width, allowed, num_threads, results);
    });
  }

 private:
  BorrowedView lists_;
};

}  // namespace

void bind_lists(nb::module_& m) {
  m.attr("WINDOW") = kWindow;
  m.attr("POSTING_BYTES") = kPostingBytes;
  nb::class_<InvertedLists>(m, "InvertedLists", "The inverted part: posting lists by window and latent.")
      .def(nb::init<Arrays, std::size_t, std::size_t>(), "arrays"_a, "n_documents"_a, "n_latents"_a)
      .def_static("build", &InvertedLists::build, "latents"_a.noconvert(), "values"_a.noconvert(), "n_latents"_a,
                  "num_threads"_a, "kept"_a.noconvert().none() = nb::none(),
                  "Lists of codes, (n, k) each, of the pairs that are kept; None: of all.")
      .def_static("concatenate", &InvertedLists::concatenate, "ranges"_a,
                  "Windows [first, last) of lists, (lists, first, last) each, one after the other.")
      .def("search", &InvertedLists::search, "projections"_a.noconvert(), "query_nnz"_a, "top"_a,
           "allowed"_a.noconvert().none(), "num_threads"_a, "codes"_a.none() = nb::none(), "damped"_a = false,
           "Best documents by the query_nnz largest entries of each projection, summed up in 16 bits:\n"
           "(scores, rows), (n_queries, top). Codes add the norms that they keep. Where damped, sums are those of\n"
           "candidates, as `search` says.")
      .def("validate", &InvertedLists::validate, "fewest"_a, "most"_a, "num_threads"_a,
           "Raises ValueError where lists are not of ascending documents, or hold fewer or more postings than so many\n"
           "of each, or norms of documents are larger than the largest.")
      .def("list_lengths", &InvertedLists::list_lengths)
      .def("arrays", &InvertedLists::arrays)
      .def_prop_ro("nbytes", &InvertedLists::nbytes)
      .def_prop_ro("n_documents", &InvertedLists::n_documents);

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
           "Best documents by terms (n_queries, m), a latent at most once in a row: (scores, rows),\n"
           "(n_queries, top).");
}

}  // namespace compressae::bindings
