#include "tensor_file.h"

#include <algorithm>

#include "digest.h"
#include "json.h"

namespace emq {
namespace {

constexpr uint64_t largest_header = 64u << 20;
constexpr int64_t largest = int64_t{1} << 40;
constexpr size_t blake2b_digits = 32;

struct Kind {
    const char *name, *numpy;  // in the file's table, and in what its digests begin with
    size_t bytes;
};

constexpr Kind kinds[] = {{"U8", "|u1", 1},  {"I8", "|i1", 1},  {"F32", "<f4", 4},
                          {"I64", "<i8", 8}, {"F64", "<f8", 8}, {"I32", "<i4", 4}};

const Kind *kind_of(const std::string &name) {
    for (const Kind &kind : kinds) {
        if (name == kind.name) return &kind;
    }
    return nullptr;
}

std::string listed(const std::vector<int64_t> &shape) {
    std::string text = "[";
    for (const int64_t side : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(side);
    return text + "]";
}

// BLAKE2b, or the SHA-256 that some files of format 3 have in its place.
bool matches(const std::string &digest, std::initializer_list<Span> parts) {
    return digest == (digest.size() == blake2b_digits ? blake2b_128(parts) : sha256(parts));
}

Span span_of(const std::string &text) { return {reinterpret_cast<const uint8_t *>(text.data()), text.size()}; }

}  // namespace

TensorFile::TensorFile(std::string name, Span bytes) : name_(std::move(name)), bytes_(bytes) {
    read_table();
    check_extents();
}

void TensorFile::fail(const std::string &what, const char *remedy) const {
    throw Failure(name_ + " " + what.substr(0, 400) + "; " + remedy);
}

void TensorFile::read_table() {
    uint64_t length = 0;
    for (size_t i = 0; bytes_.size >= 8 && i < 8; i++) length |= static_cast<uint64_t>(bytes_.data[i]) << (8 * i);
    if (length < 2 || length > std::min<uint64_t>(largest_header, bytes_.size - 8)) fail("is not an .emq file");
    start_ = 8 + length;
    std::map<std::string, std::string> texts;
    try {
        Json json({bytes_.data + 8, static_cast<size_t>(length)});
        json.object([&](const std::string &key) {
            if (key == "__metadata__") {
                texts.clear();
                return json.object([&](const std::string &name) { texts[name] = json.text(); });
            }
            Entry entry;
            std::vector<int64_t> ends;
            json.record({{"dtype", true, [&] { entry.type = json.text(); }},
                         {"shape", true, [&] { json.array([&] { entry.shape.push_back(json.whole(0, largest)); }); }},
                         {"data_offsets", true, [&] { json.array([&] { ends.push_back(json.whole(0, largest)); }); }}});
            if (ends.size() != 2 || ends[0] > ends[1]) throw Failure("a tensor lies at no place");
            entry.begin = start_ + static_cast<uint64_t>(ends[0]);
            entry.end = start_ + static_cast<uint64_t>(ends[1]);
            table_[key] = std::move(entry);
        });
        json.end();
    } catch (const Failure &) {
        fail("is not an .emq file");
    }
    if (texts.count("emqdeploy") == 0) fail("is not an .emq file");
    header_ = std::move(texts["emqdeploy"]);
    if (!matches(texts["digest"], {span_of(header_)})) fail("was altered: its metadata does not match its hash");
}

// Every tensor lies inside the file, one behind the other, and is as long as its shape says.
void TensorFile::check_extents() {
    std::vector<const std::pair<const std::string, Entry> *> order;
    for (const auto &item : table_) order.push_back(&item);
    std::sort(order.begin(), order.end(), [](const auto *a, const auto *b) {
        return std::make_pair(a->second.begin, a->second.end) < std::make_pair(b->second.begin, b->second.end);
    });
    uint64_t place = start_;
    for (const auto *item : order) {
        const Entry &entry = item->second;
        const Kind *kind = kind_of(entry.type);
        if (kind == nullptr) fail("is damaged: tensor '" + item->first + "' has type " + entry.type);
        uint64_t bytes = kind->bytes;
        for (const int64_t side : entry.shape) {
            const uint64_t count = static_cast<uint64_t>(side);
            bytes = count != 0 && bytes > UINT64_MAX / count ? UINT64_MAX : bytes * count;
        }
        if (entry.begin != place || entry.end - entry.begin != bytes) {
            fail("is damaged: the bytes of tensor '" + item->first + "' are not where they should be");
        }
        place = entry.end;
    }
    if (place > bytes_.size) {
        fail("is truncated: it has " + std::to_string(bytes_.size) + " of " + std::to_string(place) + " bytes");
    }
}

void TensorFile::check(const std::string &tensor, Type type, int64_t count) const {
    const auto found = table_.find(tensor);
    if (found == table_.end()) fail("is damaged: tensor '" + tensor + "' is missing");
    const Entry &entry = found->second;
    const char *wanted = kinds[static_cast<size_t>(type)].name;
    if (entry.type != wanted || (count >= 0 && entry.shape != std::vector<int64_t>{count})) {
        fail("is damaged: tensor '" + tensor + "' has type " + entry.type + " and shape " + listed(entry.shape));
    }
}

Span TensorFile::tensor(const std::string &tensor) const {
    const Entry &entry = table_.at(tensor);
    const Span bytes{bytes_.data + entry.begin, static_cast<size_t>(entry.end - entry.begin)};
    const std::string about = kind_of(entry.type)->numpy + listed(entry.shape);
    const auto digest = digests.find(tensor);
    if (digest == digests.end() || !matches(digest->second, {span_of(about), bytes})) {
        fail("was altered: tensor '" + tensor + "' does not match its hash");
    }
    return bytes;
}

}  // namespace emq
