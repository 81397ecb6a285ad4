// Replays networks whose every code and answer is known, on processors that have no Python: `replay CASES` compares all
// of a file that tests/runtimes/adapters/native_cases.py wrote; `replay` alone lists the instruction sets.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "emq.h"

namespace {

using Bytes = std::string;

// Numbers are 64 bits, least significant byte first; what has a length begins with it.
class Cases {
  public:
    explicit Cases(const char *path) {
        std::ifstream file(path, std::ios::binary);
        bytes_.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
        if (!file) throw std::runtime_error(std::string(path) + " cannot be read");
    }

    int64_t number() {
        int64_t value;
        std::memcpy(&value, take(sizeof value), sizeof value);
        return value;
    }

    Bytes bytes() {
        const size_t size = static_cast<size_t>(number());
        return Bytes(take(size), size);
    }

    std::vector<float> floats() {
        const Bytes raw = bytes();
        std::vector<float> values(raw.size() / sizeof(float));
        std::memcpy(values.data(), raw.data(), raw.size());
        return values;
    }

  private:
    const char *take(size_t size) {
        if (size > bytes_.size() - next_) throw std::runtime_error("the file of cases ends early");
        next_ += size;
        return bytes_.data() + next_ - size;
    }

    std::string bytes_;
    size_t next_ = 0;
};

void check(int code) {
    if (code != 0) throw std::runtime_error(emq_error());
}

struct Tally {
    int64_t children = 0, numbers = 0;
    std::set<std::string> methods;
};

template <typename Numbers>
void compare(const std::string &what, const Numbers &found, const Numbers &expected, Tally &tally) {
    if (found.size() != expected.size()) throw std::runtime_error(what + " has another shape than in the reference");
    for (size_t i = 0; i < found.size(); i++) {
        if (found[i] != expected[i]) {
            throw std::runtime_error(what + " differs from the reference, first in number " + std::to_string(i));
        }
    }
    tally.numbers += static_cast<int64_t>(found.size());
}

void replay_child(Cases &cases, emq_network *network, int32_t child, const std::string &name,
                  const std::vector<float> &image, Tally &tally) {
    const std::vector<float> logits = cases.floats();
    std::map<std::string, Bytes> expected, found;
    for (int64_t left = cases.number(); left > 0; left--) {
        const std::string site = cases.bytes();
        expected[site] = cases.bytes();
    }
    const emq_watch watch = [](void *context, const char *site, const uint8_t *codes, int32_t channels, int32_t height,
                               int32_t width) {
        const size_t count = static_cast<size_t>(channels) * static_cast<size_t>(height) * static_cast<size_t>(width);
        (*static_cast<std::map<std::string, Bytes> *>(context))[site].assign(reinterpret_cast<const char *>(codes), count);
    };
    std::vector<float> answer(logits.size());
    check(emq_trace(network, child, image.data(), answer.data(), watch, &found));
    const std::string where = name + " at " + emq_child_name(network, child);
    for (const auto &[site, codes] : expected) compare(where + ": " + site, found[site], codes, tally);
    compare(where + ": the answer", answer, logits, tally);
    tally.children++;
}

void replay_network(Cases &cases, Tally &tally) {
    const std::string name = cases.bytes(), file = cases.bytes();
    const std::vector<float> image = cases.floats();
    std::vector<std::string> layers;
    for (int64_t left = cases.number(); left > 0; left--) layers.push_back(cases.bytes());
    emq_network *network = nullptr;
    check(emq_open_bytes(file.data(), file.size(), 1, &network));
    for (int32_t child = 0; child < emq_child_count(network); child++) {
        replay_child(cases, network, child, name, image, tally);
        for (const std::string &layer : layers) tally.methods.insert(emq_layer_method(network, child, layer.c_str()));
    }
    emq_close(network);
}

}  // namespace

int main(int count, char **arguments) {
    if (count < 2) {
        std::printf("%s\n", emq_instruction_sets());
        return 0;
    }
    try {
        Cases cases(arguments[1]);
        Tally tally;
        const int64_t networks = cases.number();
        for (int64_t left = networks; left > 0; left--) replay_network(cases, tally);
        std::printf("exact: %lld networks, %lld children, %lld numbers\n", static_cast<long long>(networks),
                    static_cast<long long>(tally.children), static_cast<long long>(tally.numbers));
        for (const std::string &method : tally.methods) std::printf("%s\n", method.c_str());
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
