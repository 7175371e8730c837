// uint8 images of different sizes -> network input, a whole batch in one launch. Grid (tiles, tiles, images).
//
// Bilinear sampling by the image's rules for pixel centres and edges, rounded to a grey level as in OpenCV, then a
// table look-up of (level * scale - mean) / std: the host computes the table, so equal grey levels give equal tensors.
#include <cuda_fp16.h>

#include "params.cuh"

#ifndef DYNAMIC_SHARED  // the CPU harness defines its own
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

const int TILE_WIDTH = 64;
const int TILE_HEIGHT = 16;
const int THREADS = 256;
const int LEVELS = 256;

// Source columns (or rows) sampled by a network column (or row): `low` and `low + 1`, with the weight of the second.
struct Sample {
    int low;
    float weight;
};

struct Tile {
    Sample column[TILE_WIDTH];
    Sample row[TILE_HEIGHT];
    float level[3][LEVELS];
};

// In float64: a tile has few positions, and float32 would be off by a grey level in large images.
static __device__ Sample sample_at(int net, double scale, double shift, int half_pixel, int size) {
    const double centre = half_pixel ? 0.5 : 0.0;
    double source = ((double)net + centre - shift) / scale - centre;
    // Farther than one pixel outside nothing changes. The comparisons bring a NaN into range, too.
    source = source > -2.0 ? source : -2.0;
    source = source < (double)size + 1.0 ? source : (double)size + 1.0;
    const double low = floor(source);
    Sample sample;
    sample.low = (int)low;
    sample.weight = (float)(source - low);
    return sample;
}

static __device__ __forceinline__ int clamped(int value, int size) {
    return value < 0 ? 0 : value >= size ? size - 1 : value;
}

struct Bgr {
    float channel[3];
};

static __device__ __forceinline__ Bgr load_pixel(const Image& image, const unsigned char* pixels, int y, int x) {
    Bgr pixel;
    if (image.replicate) {
        x = clamped(x, image.width);
        y = clamped(y, image.height);
    } else if (x < 0 || y < 0 || x >= image.width || y >= image.height) {
        pixel.channel[0] = pixel.channel[1] = pixel.channel[2] = (float)image.pad_value;
        return pixel;
    }
    const unsigned char* from = pixels + (size_t)y * (size_t)image.pitch + (size_t)x * (size_t)image.channels;
    const int step = image.channels == 1 ? 0 : 1;  // grey is used three times; a fourth channel is ignored
#pragma unroll
    for (int c = 0; c < 3; ++c) pixel.channel[c] = (float)__ldg(from + c * step);
    return pixel;
}

static __device__ __forceinline__ void store(__half* out, float value) { *out = __float2half_rn(value); }
static __device__ __forceinline__ void store(float* out, float value) { *out = value; }

// Grey levels of one network pixel, blue first.
static __device__ __forceinline__ void sample_pixel(const Image& image, const unsigned char* pixels, const Sample& row,
                                                    const Sample& column, int* level) {
    const Bgr a = load_pixel(image, pixels, row.low, column.low);
    const Bgr b = load_pixel(image, pixels, row.low, column.low + 1);
    const Bgr c = load_pixel(image, pixels, row.low + 1, column.low);
    const Bgr d = load_pixel(image, pixels, row.low + 1, column.low + 1);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const float top = fmaf(column.weight, b.channel[i] - a.channel[i], a.channel[i]);
        const float bottom = fmaf(column.weight, d.channel[i] - c.channel[i], c.channel[i]);
        level[i] = __float2int_rn(fmaf(row.weight, bottom - top, top));  // a weighted mean of levels: within 0..255
    }
}

template <typename T>
static __device__ __forceinline__ void preprocess(const PreprocessParams& p) {
    DYNAMIC_SHARED(Tile, shared);
    Tile& tile = *shared;
    const Image& image = p.images[blockIdx.z];
    const unsigned char* pixels = (const unsigned char*)image.pixels;
    const bool present = pixels && image.width > 0 && image.height > 0;
    const int left = (int)blockIdx.x * TILE_WIDTH, top = (int)blockIdx.y * TILE_HEIGHT;
    const int thread = (int)threadIdx.x;
    for (int i = thread; i < 3 * LEVELS; i += THREADS) tile.level[i / LEVELS][i % LEVELS] = __ldg(p.levels + i);
    if (thread < TILE_WIDTH) {
        tile.column[thread] = sample_at(left + thread, image.scale_x, image.shift_x, image.half_pixel, image.width);
    } else if (thread < TILE_WIDTH + TILE_HEIGHT) {
        const int i = thread - TILE_WIDTH;
        tile.row[i] = sample_at(top + i, image.scale_y, image.shift_y, image.half_pixel, image.height);
    }
    __syncthreads();  // barrier: tile is filled
    const size_t plane = (size_t)p.height * (size_t)p.width;
    T* output = (T*)p.output + 3 * (size_t)blockIdx.z * plane;
    const int x = left + thread % TILE_WIDTH;
    if (x >= p.width) return;
#pragma unroll
    for (int i = 0; i < TILE_HEIGHT; i += THREADS / TILE_WIDTH) {
        const int row = i + thread / TILE_WIDTH, y = top + row;
        if (y >= p.height) return;
        int level[3] = {image.pad_value, image.pad_value, image.pad_value};
        if (present && x >= image.left && x < image.right && y >= image.top && y < image.bottom) {
            sample_pixel(image, pixels, tile.row[row], tile.column[thread % TILE_WIDTH], level);
        }
        T* to = output + (size_t)y * (size_t)p.width + x;
#pragma unroll
        for (int c = 0; c < 3; ++c) store(to + (size_t)c * plane, tile.level[c][p.rgb ? level[2 - c] : level[c]]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) preprocess_half(const __grid_constant__ PreprocessParams p) {
    preprocess<__half>(p);
}

extern "C" __global__ void __launch_bounds__(THREADS) preprocess_float(const __grid_constant__ PreprocessParams p) {
    preprocess<float>(p);
}
