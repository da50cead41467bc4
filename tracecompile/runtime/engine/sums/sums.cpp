// Products of float32 matrices of which one is mostly zeros, as sums over the rest.
//
// A product of zero changes no sum, so that what is left out is not seen in the result, as long as the other matrix is
// finite. What is left is added up in the order of the product that stands in for: a long row in blocks, each from zero,
// the results of which are added one after the other to what is there.

#include <algorithm>
#include <cstdint>
#include <memory>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;  // columns that one operation takes
constexpr int REGISTERS = 16;  // such columns that are summed up side by side, as many as registers hold
#elif defined(__AVX__)
constexpr int64_t LANES = 8;
constexpr int REGISTERS = 8;
#else
constexpr int64_t LANES = 4;
constexpr int REGISTERS = 8;
#endif
constexpr int64_t TILE = 256;  // columns of a part of the weights that stays in a cache
constexpr int64_t GROUP = 16;  // rows that a thread takes at once
constexpr int64_t STRIP = 64;  // columns that a thread looks through at once
constexpr int64_t PATCH = 16;  // rows and columns that are laid out at once
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

struct Entry {
    int64_t row;
    float value;
};

// What is not zero in a matrix: entries row by row, and behind which of them every block of a row ends.
struct Gathered {
    std::unique_ptr<Entry[]> entries;
    std::unique_ptr<int64_t[]> ends;
    int64_t room = 0, places = 0;
};

thread_local Gathered gathered;

uint32_t nonzero(const float* values) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(values), _mm512_setzero_ps(), _CMP_NEQ_UQ);
#else
    uint32_t found = 0;
    for (int64_t lane = 0; lane < LANES; ++lane) found |= uint32_t(values[lane] != 0) << lane;
    return found;
#endif
}

int64_t count(const float* values, int64_t length) {
    int64_t found = 0, at = 0;
    for (; at + LANES <= length; at += LANES) found += __builtin_popcount(nonzero(values + at));
    for (; at < length; ++at) found += values[at] != 0;
    return found;
}

// Calls something with every place and value that is not zero.
template <class Called>
void each(const float* values, int64_t begin, int64_t end, Called called) {
    int64_t at = begin;
    for (; at + LANES <= end; at += LANES)
        for (uint32_t left = nonzero(values + at); left; left &= left - 1) {
            const int64_t place = at + __builtin_ctz(left);
            called(place, values[place]);
        }
    for (; at < end; ++at)
        if (values[at] != 0) called(at, values[at]);
}

// Sums up W * LANES columns, of which the last are left out that are no columns of the result.
template <int W>
void sum(const Entry* entry, const Entry* base, const int64_t* ends, int64_t blocks, const float* weights, int64_t pitch,
         const float* first, float* out, int64_t width) {
    for (int64_t block = 0; block < blocks; ++block) {
        Lanes total[W] = {};
        for (const Entry* end = base + ends[block]; entry < end; ++entry) {
            const Lanes* row = reinterpret_cast<const Lanes*>(weights + entry->row * pitch);
            for (int w = 0; w < W; ++w) total[w] = entry->value * row[w] + total[w];  // fused, as in the product
        }
        const float* before = block ? out : first;
        if (width >= W * LANES) {
            for (int w = 0; w < W; ++w) {
                Lanes* to = reinterpret_cast<Lanes*>(out) + w;
                *to = before ? reinterpret_cast<const Lanes*>(before)[w] + total[w] : total[w];
            }
        } else {
            for (int64_t n = 0; n < width; ++n) {
                const float found = total[n / LANES][n % LANES];
                out[n] = before ? before[n] + found : found;
            }
        }
    }
}

// Sums up the columns from `at` to `end` of one row; whole operations, since weights are laid out with zeros behind.
template <int W>
void sums(int64_t at, int64_t end, const Entry* entry, const Entry* base, const int64_t* ends, int64_t blocks,
             const float* weights, int64_t pitch, const float* first, float* out, int64_t width) {
    for (; at + W * LANES <= end; at += W * LANES)
        sum<W>(entry, base, ends, blocks, weights + at, pitch, first ? first + at : nullptr, out + at, width - at);
    if constexpr (W > 1) sums<W / 2>(at, end, entry, base, ends, blocks, weights, pitch, first, out, width);
}

// Makes room for where blocks end; returns it, with a zero before.
int64_t* room_for_ends(int64_t places) {
    if (gathered.places < places + 1) {
        gathered.ends.reset(new int64_t[places + 1]);
        gathered.places = places + 1;
    }
    int64_t* const ends = gathered.ends.get() + 1;
    std::fill(ends - 1, ends + places, 0);
    return ends;
}

// Makes lengths of blocks where they end, and room for all entries if they are at most `most`; returns how many they are.
int64_t room_for_entries(int64_t* ends, int64_t places, int64_t most) {
    for (int64_t place = 0; place < places; ++place) ends[place] += ends[place - 1];
    const int64_t total = ends[places - 1];
    if (total <= most && gathered.room < total) {
        gathered.entries.reset(new Entry[total]);
        gathered.room = total;
    }
    return total;
}

}  // namespace

// Looks for what is not zero in a matrix (rows, depth); returns how many there are, and keeps them if they are at most
// `most`, for the next call of `add` by the same thread.
extern "C" int64_t gather(const float* values, int64_t pitch, int64_t rows, int64_t depth, int64_t block, int64_t most,
                          int64_t threads) {
    const int64_t blocks = (depth + block - 1) / block, places = rows * blocks;
    int64_t* const ends = room_for_ends(places);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t at = 0; at < blocks; ++at) {
            const int64_t left = depth - at * block;
            ends[row * blocks + at] = count(values + row * pitch + at * block, left < block ? left : block);
        }
    const int64_t total = room_for_entries(ends, places, most);
    if (total > most) return total;
    Entry* const entries = gathered.entries.get();
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; ++row) {
        Entry* to = entries + ends[row * blocks - 1];
        each(values + row * pitch, 0, depth, [&](int64_t at, float value) { *to++ = {at, value}; });
    }
    return total;
}

// The same of the transpose of a matrix (depth, rows).
extern "C" int64_t gather_turned(const float* values, int64_t pitch, int64_t rows, int64_t depth, int64_t block,
                                 int64_t most, int64_t threads) {
    const int64_t blocks = (depth + block - 1) / block, places = rows * blocks;
    int64_t* const ends = room_for_ends(places);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t left = 0; left < rows; left += STRIP)
        for (int64_t at = 0; at < depth; ++at)
            each(values + at * pitch, left, left + STRIP < rows ? left + STRIP : rows,
                 [&](int64_t row, float) { ++ends[row * blocks + at / block]; });
    const int64_t total = room_for_entries(ends, places, most);
    if (total > most) return total;
    Entry* const entries = gathered.entries.get();
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t left = 0; left < rows; left += STRIP) {
        const int64_t right = left + STRIP < rows ? left + STRIP : rows;
        Entry* to[STRIP];
        for (int64_t row = left; row < right; ++row) to[row - left] = entries + ends[row * blocks - 1];
        for (int64_t at = 0; at < depth; ++at)
            each(values + at * pitch, left, right,
                 [&](int64_t row, float value) { *to[row - left]++ = {at, value}; });
    }
    return total;
}

// Writes (rows, width): what is gathered times weights as `lay_out` has laid them out. Sums begin with `first` (width), or
// with nothing.
extern "C" void add(const float* weights, int64_t pitch, const float* first, float* out, int64_t rows, int64_t depth,
                    int64_t width, int64_t block, int64_t threads) {
    const int64_t blocks = (depth + block - 1) / block;
    const int64_t tiles = (width + TILE - 1) / TILE, groups = (rows + GROUP - 1) / GROUP;
    const Entry* const entries = gathered.entries.get();
    const int64_t* const ends = gathered.ends.get() + 1;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t tile = 0; tile < tiles; ++tile)
        for (int64_t group = 0; group < groups; ++group)
            for (int64_t row = group * GROUP; row < rows && row < (group + 1) * GROUP; ++row) {
                const int64_t end = (tile + 1) * TILE < pitch ? (tile + 1) * TILE : pitch;
                sums<REGISTERS>(tile * TILE, end, entries + ends[row * blocks - 1], entries, ends + row * blocks,
                                blocks, weights, pitch, first, out + row * width, width);
            }
}

// Lays weights (depth, width), `down` and `across` apart, out as (depth, pitch), zeros behind; tells whether all are
// finite.
extern "C" int64_t lay_out(const float* weights, int64_t down, int64_t across, float* out, int64_t pitch, int64_t depth,
                           int64_t width, int64_t threads) {
    int64_t broken = 0;
    const int64_t whole = across == 1 ? width / LANES * LANES : 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : broken)
    for (int64_t row = 0; row < (whole ? depth : 0); ++row) {
        Lanes nothing = {};
        for (int64_t at = 0; at < whole; at += LANES) {
            const Lanes value = *reinterpret_cast<const Lanes*>(weights + row * down + at);
            *reinterpret_cast<Lanes*>(out + row * pitch + at) = value;
            nothing += value - value;  // or not a number
        }
        for (int64_t lane = 0; lane < LANES; ++lane) broken += !(nothing[lane] == 0.0f);
    }
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) reduction(+ : broken)
    for (int64_t top = 0; top < depth; top += PATCH)
        for (int64_t left = whole; left < pitch; left += PATCH)
            for (int64_t row = top; row < top + PATCH && row < depth; ++row)
                for (int64_t at = left; at < left + PATCH && at < pitch; ++at) {
                    const float value = at < width ? weights[row * down + at * across] : 0.0f;
                    out[row * pitch + at] = value;
                    broken += !(value - value == 0.0f);
                }
    return !broken;
}
