// JSON read value by value, from front to back: nothing is kept but what is asked for.
#pragma once

#include <functional>
#include <initializer_list>
#include <string>

#include "span.h"

namespace emq {

// Every method reads the next value, and throws `Failure` for one of another type or out of bounds.
class Json {
  public:
    explicit Json(Span text) : at_(text.data), begin_(text.data), end_(text.data + text.size) {}

    struct Member {
        const char *key;
        bool needed;
        std::function<void()> read;
    };
    // An object with these members and no others, each at most once.
    void record(std::initializer_list<Member> members);
    // An object with any members; `member` reads the value of each.
    void object(const std::function<void(const std::string &key)> &member);
    void array(const std::function<void()> &element);

    std::string text();
    std::string line();  // printable, of up to 1024 letters
    std::string name();  // printable, of 1 to 512 letters
    size_t one_of(std::initializer_list<const char *> names);  // its place among them
    double number();
    int64_t whole(int64_t least, int64_t most);
    bool truth();
    bool is_object();
    bool is_null();  // and reads it, where it is
    void skip();
    void end();  // nothing may follow

  private:
    [[noreturn]] void fail(const char *what) const;
    uint8_t look();                // at the first letter behind white space
    void expect(char letter);
    bool takes(char letter);
    bool word(const char *letters);
    void escape(std::string &into);
    void plain(std::string &into);
    unsigned hexadecimal();
    void digits();
    std::string numeral();
    std::string printable(int least, int most);

    const uint8_t *at_, *const begin_, *const end_;
    int depth_ = 0;
};

}  // namespace emq
