/* Classifies one image at every child of a network: classify NETWORK PIXELS
 *
 * NETWORK is a .emq file or a bundle. PIXELS is a file of raw bytes, row by row and red, green, blue in each pixel, as
 * `convert photo.jpg -resize 224x224! rgb:photo.raw` writes them, of the size that the network takes.
 */
#include <emq.h>
#include <stdio.h>
#include <stdlib.h>

static int failed(const char *sentence) {
    fprintf(stderr, "%s\n", sentence);
    return EXIT_FAILURE;
}

/* Reads exactly `size` bytes; null where the file has fewer or more. */
static uint8_t *read_pixels(const char *path, size_t size) {
    FILE *file = fopen(path, "rb");
    uint8_t *pixels = malloc(size + 1);
    size_t taken = file != NULL && pixels != NULL ? fread(pixels, 1, size + 1, file) : 0;
    if (file != NULL) fclose(file);
    if (taken == size) return pixels;
    free(pixels);
    return NULL;
}

int main(int count, char **arguments) {
    emq_network *network = NULL;
    emq_pixels input;
    if (count != 3) return failed("usage: classify NETWORK PIXELS");
    if (emq_version() != EMQ_VERSION) return failed("this program was built for another version of libemq");
    if (emq_open(arguments[1], 0, &network) != 0 || emq_input(network, &input) != 0) return failed(emq_error());

    uint8_t *pixels = read_pixels(arguments[2], (size_t)input.channels * (size_t)input.height * (size_t)input.width);
    if (pixels == NULL) {
        fprintf(stderr, "%s has to hold %dx%d pixels of %d bytes\n", arguments[2], input.width, input.height, input.channels);
        return EXIT_FAILURE;
    }
    for (int32_t child = 0; child < emq_child_count(network); child++) {
        int32_t best;
        double probability;
        if (emq_classify(network, child, pixels, &best, &probability) != 0) return failed(emq_error());
        printf("%-8s %s %.1f %%\n", emq_child_name(network, child), emq_class_name(network, best), 100 * probability);
    }
    free(pixels);
    emq_close(network);
    return EXIT_SUCCESS;
}
