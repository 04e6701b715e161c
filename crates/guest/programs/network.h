/*
 * The Linux guest's network: one card with an address of version 4, and one socket for datagrams, which outlives what
 * becomes of the machine. Included once, by init.c.
 */

enum { SYS_SOCKET = 41, SYS_CONNECT = 42, INTERNET = 2, DATAGRAMS = 2 };

struct internet_address {
    unsigned short family, port;
    u8 bytes[4], unused[8];
};

static int datagrams = -1;

/* `A.B.C.D` at `*text`, which moves past it. */
static struct internet_address take_address(const char **text) {
    struct internet_address address = {.family = INTERNET};
    for (int at = 0; at < 4; at++) {
        address.bytes[at] = (u8)take_number(text);
        if (**text == '.') (*text)++;
    }
    while (**text == ' ') (*text)++;
    return address;
}

static long of_card(long request, struct internet_address address) {
    struct {
        char card[16];
        struct internet_address address;
        u8 unused[8];
    } asked = {.card = "eth0", .address = address};
    return call(SYS_IOCTL, datagrams, request, (word)&asked, 0, 0);
}

/* `network A.B.C.D`: the address of eth0, in a network of 256. */
static void set_up_network(const char *rest) {
    enum { SET_FLAGS = 0x8914, SET_ADDRESS = 0x8916, SET_MASK = 0x891c, UP_AND_RUNNING = 0x41 };
    struct internet_address mask = {.family = INTERNET, .bytes = {255, 255, 255, 0}};
    /* Where an address has its family, flags have themselves. */
    struct internet_address flags = {.family = UP_AND_RUNNING};
    if (datagrams < 0) datagrams = (int)call(SYS_SOCKET, INTERNET, DATAGRAMS, 0, 0, 0);
    long error = datagrams < 0 ? datagrams : of_card(SET_ADDRESS, take_address(&rest));
    if (!error) error = of_card(SET_MASK, mask);
    if (!error) error = of_card(SET_FLAGS, flags);
    if (error) say_error("network", error);
    else say("network ok\r\n");
}

/* `send A.B.C.D PORT TEXT`: sends the text to that port and waits for what comes back; tries again for a while, as
 * datagrams get lost. */
static void send_text(const char *rest) {
    enum { TRIES = 30, A_SECOND = 1000 };
    char heard[LINE_BYTES];
    struct internet_address to = take_address(&rest);
    u32 port = take_number(&rest);
    to.port = (unsigned short)(port << 8 | port >> 8);
    long bytes = call(SYS_CONNECT, datagrams, (word)&to, sizeof to, 0, 0);
    for (int tries = 0, over = bytes < 0; tries < TRIES && !over; tries++) {
        struct {
            int file;
            short wanted, found;
        } poll = {datagrams, 1, 0};
        bytes = write_file(datagrams, rest, text_length(rest));
        if (!bytes && call(SYS_POLL, (word)&poll, 1, A_SECOND, 0, 0) > 0) {
            bytes = read_file(datagrams, heard, sizeof heard - 1);
            over = bytes >= 0;
        }
    }
    if (bytes <= 0) {
        say_error("send", bytes);
        return;
    }
    heard[bytes] = 0;
    say("heard ");
    say(heard);
    end_line();
}
