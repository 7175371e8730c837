// Heatmap -> detections in one launch: 3x3 peaks, top K, scores, boxes, inverse affine. Grid (blocks, images).
//
// Every block selects the largest keys of its part of the heatmap in shared memory and appends them to the image's
// list; the last block of an image to finish selects among all. Peaks, order, ties, NaN and -0.0 are specified by
// centernet_trt.runtime.host.decode; the result is the same for every grid and every order of execution.
#include <cuda_fp16.h>

#include "params.cuh"
#include "select.cuh"
#include "boxes.cuh"

#ifndef DYNAMIC_SHARED  // the CPU harness defines its own
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

const int UNIT_ROWS = 4;           // rows of 16 bytes that a thread processes at a time
const int MERGE_KEYS = 8;          // keys that a thread reads at a time while merging
const int MAX_THREADS = 384;     // with 80 registers two blocks fit on a multiprocessor
const unsigned NAN_HALVES = 0x7e007e00u;
const unsigned NAN_FLOAT = 0x7fc00000u;

// 16 bytes of one heatmap row. Cells outside the map are NaN: never a peak, never a larger neighbour.
template <typename T>
struct Row;

template <>
struct Row<__half> {
    static const int CELLS = 8;
    unsigned word[4];
    __device__ __forceinline__ float at(int cell) const {
        return __half2float(__ushort_as_half((unsigned short)(word[cell >> 1] >> (16 * (cell & 1)))));
    }
    __device__ __forceinline__ void set(int cell, __half value) {
        const int shift = 16 * (cell & 1);
        word[cell >> 1] = (word[cell >> 1] & ~(0xffffu << shift)) | (unsigned)__half_as_ushort(value) << shift;
    }
    __device__ __forceinline__ void clear() { word[0] = word[1] = word[2] = word[3] = NAN_HALVES; }
};

template <>
struct Row<float> {
    static const int CELLS = 4;
    unsigned word[4];
    __device__ __forceinline__ float at(int cell) const { return __uint_as_float(word[cell]); }
    __device__ __forceinline__ void set(int cell, float value) { word[cell] = __float_as_uint(value); }
    __device__ __forceinline__ void clear() { word[0] = word[1] = word[2] = word[3] = NAN_FLOAT; }
};

static __device__ __forceinline__ float as_float(__half value) { return __half2float(value); }
static __device__ __forceinline__ float as_float(float value) { return value; }

template <typename T>
static __device__ __forceinline__ Row<T> load_row(const T* map, int y, int x, int height, int width) {
    Row<T> row;
    row.clear();
    if (y < 0 || y >= height) return row;
    const T* from = map + (size_t)y * (size_t)width + x;
    if (x + Row<T>::CELLS <= width && ((size_t)from & 15) == 0) {
        const uint4 four = __ldg((const uint4*)from);
        row.word[0] = four.x;
        row.word[1] = four.y;
        row.word[2] = four.z;
        row.word[3] = four.w;
    } else {
#pragma unroll
        for (int i = 0; i < Row<T>::CELLS; ++i) {
            if (x + i < width) row.set(i, __ldg(from + i));
        }
    }
    return row;
}

template <typename T>
static __device__ __forceinline__ float load_cell(const T* map, int y, int x, int height, int width) {
    const bool inside = y >= 0 && y < height && x >= 0 && x < width;
    return inside ? as_float(__ldg(map + (size_t)y * (size_t)width + x)) : __uint_as_float(NAN_FLOAT);
}

// Bit i: cell x + i of row y is a peak at or above the level. Almost all rows end after the first loop.
template <typename T>
static __device__ __forceinline__ unsigned peaks_of_row(const Row<T>& above, const Row<T>& row, const Row<T>& below,
                                                        const T* map, int y, int x, int height, int width, float level,
                                                        int first) {
    const int cells = Row<T>::CELLS;
    bool any = false;
#pragma unroll
    for (int i = 0; i < cells; ++i) any |= row.at(i) >= level;
    if (!any) return 0;
    // fmaxf ignores a NaN. up[i], mid[i]: cell x + i - 1 of the row above and of this one; column[i]: the three rows.
    float up[cells + 2], mid[cells + 2], column[cells + 2];
#pragma unroll
    for (int i = 0; i < cells + 2; ++i) {
        const bool edge = i == 0 || i == cells + 1;
        up[i] = edge ? load_cell(map, y - 1, x + i - 1, height, width) : above.at(edge ? 0 : i - 1);
        mid[i] = edge ? load_cell(map, y, x + i - 1, height, width) : row.at(edge ? 0 : i - 1);
        const float low = edge ? load_cell(map, y + 1, x + i - 1, height, width) : below.at(edge ? 0 : i - 1);
        column[i] = fmaxf(fmaxf(up[i], mid[i]), low);
    }
    unsigned peaks = 0;
#pragma unroll
    for (int i = 0; i < cells; ++i) {
        const float value = mid[i + 1];
        bool peak = value >= level && value == fmaxf(fmaxf(column[i], column[i + 1]), column[i + 2]);
        // Four of the eight neighbours precede the cell.
        if (first) peak = peak && value != fmaxf(fmaxf(up[i], up[i + 1]), fmaxf(up[i + 2], mid[i]));
        peaks |= peak ? 1u << i : 0u;
    }
    return peaks;
}

// Scans the block's share of one image's heatmap in units of UNIT_ROWS rows x 16 bytes; adjacent threads take adjacent
// units.
template <typename T>
static __device__ void scan(const DecodeParams& p, Selection& s, Key* keys, unsigned k) {
    const int cells = Row<T>::CELLS, height = p.height, width = p.width;
    const unsigned across = (unsigned)(width + cells - 1) / cells;
    const unsigned strips = (unsigned)(height + UNIT_ROWS - 1) / UNIT_ROWS;
    const unsigned units = (unsigned)p.classes * strips * across;
    const size_t plane = (size_t)height * (size_t)width;
    const T* heatmap = (const T*)p.heatmap + (size_t)blockIdx.y * (size_t)p.classes * plane;
    for (unsigned begin = blockIdx.x * blockDim.x; begin < units; begin += gridDim.x * blockDim.x) {
        const unsigned unit = begin + threadIdx.x;
        const unsigned strip = unit / across;
        const unsigned label = strip / strips;
        const int x = (int)(unit - strip * across) * cells, y = (int)(strip - label * strips) * UNIT_ROWS;
        const T* map = heatmap + (size_t)label * plane;
        unsigned peaks = 0;
        if (unit < units) {
            const float level = key_value(s.level);
            Row<T> rows[UNIT_ROWS + 2];
#pragma unroll
            for (int r = 0; r < UNIT_ROWS + 2; ++r) rows[r] = load_row(map, y + r - 1, x, height, width);
#pragma unroll
            for (int r = 0; r < UNIT_ROWS; ++r) {
                peaks |= peaks_of_row(rows[r], rows[r + 1], rows[r + 2], map, y + r, x, height, width, level, p.first)
                         << (r * cells);
            }
        }
        offer(s, keys, (unsigned)p.buffer_keys, k, (unsigned)p.list_keys, peaks, [&](int bit) {
            const size_t at = (size_t)label * plane + (size_t)(y + bit / cells) * (size_t)width + (x + bit % cells);
            return make_key(as_float(__ldg(heatmap + at)), (unsigned)at);
        });
    }
}

// Appends the block's keys to the image's list. True in the last block of the image to do so, to which all keys are
// visible.
static __device__ bool hand_on(const DecodeParams& p, Selection& s, const Key* keys, Key* list) {
    unsigned* counters = p.counters + 2 * (size_t)blockIdx.y;
    const unsigned held = s.count;
    if (threadIdx.x == 0) s.base = held ? atomicAdd(&counters[0], held) : 0;
    __syncthreads();  // barrier: base of the block in the list is known
    for (unsigned i = threadIdx.x; i < held; i += blockDim.x) __stcg(list + s.base + i, keys[i]);
    __threadfence();  // fence: keys before ticket
    __syncthreads();  // barrier: keys are written before the ticket is drawn
    if (threadIdx.x == 0) s.last = atomicAdd(&counters[1], 1u) == gridDim.x - 1;
    __syncthreads();  // barrier: ticket is drawn
    if (!s.last) return false;
    __threadfence();  // fence: ticket before keys
    return true;
}

// Selects the k largest keys of the image's list. The block's own level stays valid: k keys at or above it are in the
// list.
static __device__ void merge(const DecodeParams& p, Selection& s, Key* keys, const Key* list, unsigned k) {
    unsigned* counters = p.counters + 2 * (size_t)blockIdx.y;
    const unsigned total = __ldcg(&counters[0]);
    __syncthreads();  // barrier: total is read before the counters are reset
    if (threadIdx.x == 0) {
        s.count = 0;
        counters[0] = 0;  // for the next launch
        counters[1] = 0;
    }
    __syncthreads();  // barrier: selection is empty
    for (unsigned begin = 0; begin < total; begin += MERGE_KEYS * blockDim.x) {
        Key mine[MERGE_KEYS];
        unsigned pending = 0;
#pragma unroll
        for (int i = 0; i < MERGE_KEYS; ++i) {
            const unsigned at = begin + (unsigned)i * blockDim.x + threadIdx.x;
            mine[i] = at < total ? __ldcg(list + at) : 0;
            pending |= at < total ? 1u << i : 0u;
        }
        offer(s, keys, (unsigned)p.buffer_keys, k, (unsigned)p.list_keys, pending, [&](int bit) {
            Key key = 0;
#pragma unroll
            for (int i = 0; i < MERGE_KEYS; ++i) key = i == bit ? mine[i] : key;  // registers have no index
            return key;
        });
    }
}

template <typename T>
static __device__ __forceinline__ void decode(const DecodeParams& p) {
    DYNAMIC_SHARED(Key, shared);
    Selection& s = *(Selection*)shared;
    Key* keys = shared + sizeof(Selection) / sizeof(Key);
    const Image& image = p.images[blockIdx.y];
    const int wanted = image.top_k < p.rows ? image.top_k : p.rows;
    const unsigned k = wanted > 0 ? (unsigned)wanted : 0u;
    if (threadIdx.x == 0) {
        s.count = 0;
        s.level = k ? make_key(image.threshold, 0xffffffffu) : ~(Key)0;
    }
    __syncthreads();  // barrier: level is set
    scan<T>(p, s, keys, k);
    Key* list = p.keys + (size_t)blockIdx.y * gridDim.x * (size_t)p.list_keys;
    if (!hand_on(p, s, keys, list)) return;
    merge(p, s, keys, list, k);
    const unsigned held = s.count;
    if (held <= blockDim.x) {
        rank_keys(keys, held);
    } else {
        sort_keys(keys, held);
    }
    write_image(p, image, keys, held < k ? held : k);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 2) decode_half(const __grid_constant__ DecodeParams p) {
    decode<__half>(p);
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 2) decode_float(const __grid_constant__ DecodeParams p) {
    decode<float>(p);
}
