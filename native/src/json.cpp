#include "json.h"

#include <cstring>
#include <locale>
#include <set>
#include <sstream>
#include <vector>

#include "failure.h"
#include "utf8.h"

namespace emq {
namespace {

constexpr int deepest = 64;
constexpr int longest_name = 512, longest_line = 1024;

void append(std::string &text, unsigned point) {
    const auto tail = [&](int shift) { text += static_cast<char>(0x80 | ((point >> shift) & 0x3f)); };
    if (point < 0x80) {
        text += static_cast<char>(point);
    } else if (point < 0x800) {
        text += static_cast<char>(0xc0 | (point >> 6));
        tail(0);
    } else if (point < 0x10000) {
        text += static_cast<char>(0xe0 | (point >> 12));
        tail(6);
        tail(0);
    } else {
        text += static_cast<char>(0xf0 | (point >> 18));
        tail(12);
        tail(6);
        tail(0);
    }
}

bool is_space(uint8_t letter) { return letter == ' ' || letter == '\n' || letter == '\r' || letter == '\t'; }
bool is_digit(uint8_t letter) { return letter >= '0' && letter <= '9'; }
bool is_tail(uint8_t letter) { return (letter & 0xc0) == 0x80; }

}  // namespace

void Json::fail(const char *what) const {
    throw Failure("its JSON has " + std::string(what) + " at byte " + std::to_string(at_ - begin_));
}

uint8_t Json::look() {
    while (at_ != end_ && is_space(*at_)) at_++;
    if (at_ == end_) fail("an early end");
    return *at_;
}

bool Json::takes(char letter) {
    if (look() != static_cast<uint8_t>(letter)) return false;
    at_++;
    return true;
}

void Json::expect(char letter) {
    if (!takes(letter)) fail("another type or mark than it should");
}

bool Json::word(const char *letters) {
    const size_t length = std::strlen(letters);
    look();
    if (static_cast<size_t>(end_ - at_) < length || std::memcmp(at_, letters, length) != 0) return false;
    at_ += length;
    return true;
}

void Json::object(const std::function<void(const std::string &key)> &member) {
    expect('{');
    if (++depth_ > deepest) fail("too many objects in one another");
    for (bool first = true; !takes('}'); first = false) {
        if (!first) expect(',');
        const std::string key = text();
        expect(':');
        member(key);
    }
    depth_--;
}

void Json::array(const std::function<void()> &element) {
    expect('[');
    if (++depth_ > deepest) fail("too many lists in one another");
    for (bool first = true; !takes(']'); first = false) {
        if (!first) expect(',');
        element();
    }
    depth_--;
}

void Json::record(std::initializer_list<Member> members) {
    std::set<std::string> seen;
    object([&](const std::string &key) {
        if (!seen.insert(key).second) fail("a field twice");
        for (const Member &member : members) {
            if (key == member.key) return member.read();
        }
        fail(("an unknown field " + key.substr(0, 64)).c_str());
    });
    for (const Member &member : members) {
        if (member.needed && seen.count(member.key) == 0) fail(("no " + std::string(member.key)).c_str());
    }
}

unsigned Json::hexadecimal() {
    unsigned value = 0;
    for (int i = 0; i < 4; i++) {
        if (at_ == end_) fail("an early end");
        const uint8_t letter = *at_, small = static_cast<uint8_t>(letter | 0x20);
        if (!is_digit(letter) && (small < 'a' || small > 'f')) fail("a strange escape");
        value = value << 4 | static_cast<unsigned>(is_digit(letter) ? letter - '0' : small - 'a' + 10);
        at_++;
    }
    return value;
}

void Json::escape(std::string &into) {
    static const char letters[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    if (at_ == end_) fail("an early end");
    const char letter = static_cast<char>(*at_++);
    if (letter != 'u') {
        const char *found = letter == '\0' ? nullptr : std::strchr(letters, letter);
        if (found == nullptr) fail("a strange escape");
        into += meant[found - letters];
        return;
    }
    unsigned point = hexadecimal();
    if (point >= 0xd800 && point < 0xdc00) {
        if (!(end_ - at_ >= 6 && at_[0] == '\\' && at_[1] == 'u')) fail("half a letter");
        at_ += 2;
        const unsigned second = hexadecimal();
        if (second < 0xdc00 || second > 0xdfff) fail("half a letter");
        point = 0x10000 + ((point - 0xd800) << 10) + (second - 0xdc00);
    } else if (point >= 0xdc00 && point < 0xe000) {
        fail("half a letter");
    }
    append(into, point);
}

void Json::plain(std::string &into) {
    if (*at_ < 0x20) fail("a letter that must be escaped");
    const int length = letter_length(at_, end_);
    if (length == 0) fail("a letter that is no UTF-8");
    into.append(reinterpret_cast<const char *>(at_), static_cast<size_t>(length));
    at_ += length;
}

std::string Json::text() {
    std::string found;
    expect('"');
    while (at_ != end_ && *at_ != '"') {
        if (*at_ != '\\') {
            plain(found);
            continue;
        }
        at_++;
        escape(found);
    }
    expect('"');
    return found;
}

std::string Json::line() { return printable(0, longest_line); }
std::string Json::name() { return printable(1, longest_name); }

size_t Json::one_of(std::initializer_list<const char *> names) {
    const std::string found = name();
    std::string all;
    size_t place = 0;
    for (const char *one : names) {
        if (found == one) return place;
        all += (place++ == 0 ? "" : ", ") + std::string(one);
    }
    fail(("a name that is none of: " + all).c_str());
}

std::string Json::printable(int least, int most) {
    const std::string found = text();
    int letters = 0;
    uint8_t before = 0;
    for (const char letter : found) {
        const uint8_t byte = static_cast<uint8_t>(letter);
        letters += !is_tail(byte);
        if (byte < 0x20 || byte == 0x7f || (before == 0xc2 && byte < 0xa0)) fail("a text that cannot be printed");
        before = byte;
    }
    if (letters < least || letters > most) fail("a text that is too long or too short");
    return found;
}

void Json::digits() {
    if (at_ == end_ || !is_digit(*at_)) fail("another type than a number");
    while (at_ != end_ && is_digit(*at_)) at_++;
}

std::string Json::numeral() {
    look();
    const uint8_t *start = at_;
    if (*at_ == '-') at_++;
    if (at_ != end_ && *at_ == '0') {
        at_++;
    } else {
        digits();
    }
    if (at_ != end_ && *at_ == '.') {
        at_++;
        digits();
    }
    if (at_ != end_ && (*at_ == 'e' || *at_ == 'E')) {
        at_++;
        if (at_ != end_ && (*at_ == '+' || *at_ == '-')) at_++;
        digits();
    }
    return {reinterpret_cast<const char *>(start), static_cast<size_t>(at_ - start)};
}

double Json::number() {
    // A stream of the classic locale: other conversions read a comma where the user's language has one.
    std::istringstream stream(numeral());
    stream.imbue(std::locale::classic());
    double value = 0;
    if (!(stream >> value)) fail("a number out of bounds");
    return value;
}

int64_t Json::whole(int64_t least, int64_t most) {
    const std::string letters = numeral();
    int64_t value = 0;
    if (letters.size() > 18 || letters.find_first_of(".eE") != std::string::npos) fail("no whole number");
    for (const char letter : letters) {
        if (letter != '-') value = value * 10 + (letter - '0');
    }
    if (letters[0] == '-') value = -value;
    if (value < least || value > most) fail("a number out of bounds");
    return value;
}

bool Json::truth() {
    if (word("true")) return true;
    if (!word("false")) fail("another type than true or false");
    return false;
}

bool Json::is_object() { return look() == '{'; }
bool Json::is_null() { return word("null"); }

void Json::skip() {
    switch (look()) {
        case '{': return object([&](const std::string &) { skip(); });
        case '[': return array([&] { skip(); });
        case '"': text(); return;
        default: break;
    }
    if (!word("null") && !word("true") && !word("false")) number();
}

void Json::end() {
    while (at_ != end_ && is_space(*at_)) at_++;
    if (at_ != end_) fail("something behind its end");
}

}  // namespace emq
