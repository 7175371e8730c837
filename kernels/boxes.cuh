// Boxes, scores and extra heads of the selected cells. At most K cells of an image need this, so it is done in float64,
// in the order of operations of the NumPy reference: the results are bit-identical (except exp).
#pragma once

struct Cell {
    unsigned label, y, x;
    size_t at;  // y * width + x
};

struct Corners {
    double x0, y0, x1, y1;  // network-input pixels
};

static __device__ __forceinline__ float load_float(const void* data, size_t at, int half) {
    return half ? __half2float(__ldg((const __half*)data + at)) : __ldg((const float*)data + at);
}

static __device__ __forceinline__ Cell cell_of(const DecodeParams& p, unsigned index) {
    Cell cell;
    const unsigned row = index / (unsigned)p.width;
    cell.x = index - row * (unsigned)p.width;
    cell.label = row / (unsigned)p.height;
    cell.y = row - cell.label * (unsigned)p.height;
    cell.at = (size_t)cell.y * (size_t)p.width + cell.x;
    return cell;
}

// Loads channels `channel` and `channel + 1` of a head of `channels` channels as (x, y).
static __device__ __forceinline__ void load_pair(const DecodeParams& p, const void* data, int half, int channels,
                                                 int channel, int swap, const Cell& cell, double* x, double* y) {
    const size_t plane = (size_t)p.height * (size_t)p.width;
    const size_t at = ((size_t)blockIdx.y * (size_t)channels + (size_t)channel) * plane + cell.at;
    const double first = load_float(data, at, half), second = load_float(data, at + plane, half);
    *x = swap ? second : first;
    *y = swap ? first : second;
}

// Centre in cells.
static __device__ __forceinline__ void centre_of(const DecodeParams& p, const Cell& cell, double* x, double* y) {
    *x = (double)cell.x + p.cell_offset;
    *y = (double)cell.y + p.cell_offset;
    if (p.offset) {
        double dx, dy;
        load_pair(p, p.offset, p.offset_half, 2, 0, p.offset_swap, cell, &dx, &dy);
        *x += dx;
        *y += dy;
    }
}

static __device__ Corners corners_of(const DecodeParams& p, const Cell& cell, double centre_x, double centre_y) {
    const double unit = p.box_cells ? (double)p.stride : 1.0;
    const double x = centre_x * p.stride, y = centre_y * p.stride;
    Corners box;
    if (p.box_encoding == BOX_LTRB) {
        double left, top, right, bottom;
        load_pair(p, p.box, p.box_half, 4, 0, p.box_swap, cell, &left, &top);
        load_pair(p, p.box, p.box_half, 4, 2, p.box_swap, cell, &right, &bottom);
        box.x0 = x - left * unit;
        box.y0 = y - top * unit;
        box.x1 = x + right * unit;
        box.y1 = y + bottom * unit;
        return box;
    }
    double width, height;
    load_pair(p, p.box, p.box_half, 2, 0, p.box_swap, cell, &width, &height);
    if (p.box_encoding == BOX_LOG_WH) {
        width = exp(width);
        height = exp(height);
    }
    const double half_x = width * (unit / 2), half_y = height * (unit / 2);
    box.x0 = x - half_x;
    box.y0 = y - half_y;
    box.x1 = x + half_x;
    box.y1 = y + half_y;
    return box;
}

static __device__ __forceinline__ float to_source(double value, double shift, double scale) {
    return (float)((value - shift) / scale);
}

static __device__ __forceinline__ float clipped(float value, int limit) {  // keeps a NaN
    return value < 0.0f ? 0.0f : value > (float)limit ? (float)limit : value;
}

static __device__ void write_row(const DecodeParams& p, const Image& image, size_t row, bool found, Key key) {
    float x0 = 0.0f, y0 = 0.0f, x1 = 0.0f, y1 = 0.0f, score = 0.0f;
    int label = -1;
    if (found) {
        const Cell cell = cell_of(p, key_index(key));
        double centre_x, centre_y;
        centre_of(p, cell, &centre_x, &centre_y);
        const Corners box = corners_of(p, cell, centre_x, centre_y);
        x0 = to_source(box.x0, image.shift_x, image.scale_x);
        y0 = to_source(box.y0, image.shift_y, image.scale_y);
        x1 = to_source(box.x1, image.shift_x, image.scale_x);
        y1 = to_source(box.y1, image.shift_y, image.scale_y);
        if (p.clip) {
            x0 = clipped(x0, image.width);
            y0 = clipped(y0, image.height);
            x1 = clipped(x1, image.width);
            y1 = clipped(y1, image.height);
        }
        score = key_value(key);
        if (p.logits) score = (float)(1.0 / (1.0 + exp(-(double)score)));
        label = (int)cell.label;
    }
    float* xyxy = p.xyxy + 4 * row;
    xyxy[0] = x0;
    xyxy[1] = y0;
    xyxy[2] = x1;
    xyxy[3] = y1;
    p.score[row] = score;
    p.label[row] = label;
}

// Writes one point (two columns) or one raw value (one column) of an extra head.
static __device__ void write_extra(const DecodeParams& p, const Image& image, const ExtraHead& head, int item, bool found,
                                   Key key, float* out) {
    if (head.kind == EXTRA_RAW) {
        float value = 0.0f;
        if (found) {
            const size_t plane = (size_t)p.height * (size_t)p.width;
            const size_t channel = (size_t)blockIdx.y * (size_t)head.channels + (size_t)item;
            value = load_float(head.data, channel * plane + cell_of(p, key_index(key)).at, head.half);
        }
        out[item] = value;
        return;
    }
    float source_x = 0.0f, source_y = 0.0f;
    if (found) {
        const Cell cell = cell_of(p, key_index(key));
        double x, y, centre_x, centre_y;
        load_pair(p, head.data, head.half, head.channels, 2 * item, head.swap, cell, &x, &y);
        centre_of(p, cell, &centre_x, &centre_y);
        const Corners box = corners_of(p, cell, centre_x, centre_y);
        if (head.units == UNITS_BOX) {
            x *= box.x1 - box.x0;
            y *= box.y1 - box.y0;
        } else if (head.units == UNITS_CELLS) {
            x *= p.stride;
            y *= p.stride;
        }
        const bool cell_origin = head.origin == ORIGIN_CELL, box_origin = head.origin == ORIGIN_TOP_LEFT;
        x += box_origin ? box.x0 : (cell_origin ? (double)cell.x : centre_x) * p.stride;
        y += box_origin ? box.y0 : (cell_origin ? (double)cell.y : centre_y) * p.stride;
        source_x = to_source(x, image.shift_x, image.scale_x);
        source_y = to_source(y, image.shift_y, image.scale_y);
    }
    out[2 * item] = source_x;
    out[2 * item + 1] = source_y;
}

// Writes all output rows of one image from its sorted keys; rows from `count` on are zeros with label -1.
static __device__ void write_image(const DecodeParams& p, const Image& image, const Key* keys, unsigned count) {
    const unsigned rows = (unsigned)p.rows;
    const size_t first = (size_t)blockIdx.y * rows;
    if (threadIdx.x == 0) p.count[blockIdx.y] = (int)count;
    for (unsigned row = threadIdx.x; row < rows; row += blockDim.x) {
        write_row(p, image, first + row, row < count, row < count ? keys[row] : 0);
    }
    for (int e = 0; e < p.extra_count; ++e) {
        const ExtraHead& head = p.extras[e];
        const unsigned items = (unsigned)(head.kind == EXTRA_RAW ? head.channels : head.channels / 2);
        for (unsigned i = threadIdx.x; i < rows * items; i += blockDim.x) {
            const unsigned row = i / items;
            float* out = p.extra + (first + row) * (size_t)p.extra_columns + head.column;
            write_extra(p, image, head, (int)(i - row * items), row < count, row < count ? keys[row] : 0, out);
        }
    }
}
