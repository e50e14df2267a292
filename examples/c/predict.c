/*
 * Asks the agent on this device for predictions, through its Unix socket: libcurl for HTTP, cJSON for JSON.
 *
 * usage: predict [-s SOCKET] [-m MODEL] [-i INPUT] [-a ATTEMPTS] [-r SECONDS] FILE
 *
 * FILE is a PGM image (P2 or P5), whose grey values are brought to 0..16 as the digits model takes them, or text with one input a
 * line: a label, which is not sent, then the numbers, separated by commas. Prints "LINE CLASS PROBABILITY MODEL@VERSION" for each.
 * With -r it starts over when it is through, that many seconds later, until SIGTERM or SIGINT stops it (exit status 0).
 * What may pass (no socket yet, no model yet, too many requests) is tried ATTEMPTS times with growing pauses, then the exit status
 * is 1; what cannot pass ends it at once. Memory is bounded: one input, one answer, at most MAX_VALUES numbers and MAX_ANSWER_BYTES.
 */
#define _POSIX_C_SOURCE 200809L
#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cjson/cJSON.h>
#include <curl/curl.h>

#define MAX_VALUES 65536
#define MAX_ANSWER_BYTES (1024 * 1024)
/* A request takes milliseconds; this bounds one to an agent that is stuck. */
#define TIMEOUT_MS 5000L
#define FIRST_PAUSE_MS 200L
#define LONGEST_PAUSE_MS 10000L
/* The brightest value of the digits model's inputs. */
#define BRIGHTEST 16.0

static volatile sig_atomic_t stopped = 0;

static void stop(int signal)
{
    (void)signal;
    stopped = 1;
}

struct answer {
    char *text;
    size_t length;
};

struct settings {
    const char *socket, *model, *input, *file;
    long attempts, interval_s;
};

/* Takes the answer's bytes; a short count makes libcurl give the transfer up. */
static size_t receive(char *bytes, size_t size, size_t count, void *to)
{
    struct answer *answer = to;
    size_t more = size * count;
    if (answer->length + more > MAX_ANSWER_BYTES)
        return 0;
    char *grown = realloc(answer->text, answer->length + more + 1);
    if (!grown)
        return 0;
    memcpy(grown + answer->length, bytes, more);
    answer->text = grown;
    answer->length += more;
    grown[answer->length] = '\0';
    return more;
}

/* Lets a signal end a request under way: nonzero aborts it. */
static int watch(void *data, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    (void)data, (void)a, (void)b, (void)c, (void)d;
    return stopped;
}

/* Between half and all of the pause for this attempt, so that many programs do not come back together. */
static long pause_ms(long attempt)
{
    long pause = FIRST_PAUSE_MS;
    while (--attempt > 0 && pause < LONGEST_PAUSE_MS)
        pause *= 2;
    if (pause > LONGEST_PAUSE_MS)
        pause = LONGEST_PAUSE_MS;
    return pause / 2 + rand() % (pause / 2 + 1);
}

/* A signal ends it early. */
static void rest(long milliseconds)
{
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* What the agent says about its refusal. */
static void print_refusal(const struct answer *answer)
{
    cJSON *json = answer->text ? cJSON_Parse(answer->text) : NULL;
    const char *error = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "error"));
    fprintf(stderr, "%s\n", error ? error : "no reason was given");
    cJSON_Delete(json);
}

/* Prints the most probable class. 0, or 1 if the answer is none. */
static int print_prediction(long line, const char *text)
{
    cJSON *json = text ? cJSON_Parse(text) : NULL;
    const char *model = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "model_name"));
    const char *version = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "model_version"));
    cJSON *output = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(json, "outputs"), 0);
    cJSON *data = cJSON_GetObjectItemCaseSensitive(output, "data"), *value;
    int at = 0, class = -1;
    double best = 0;
    cJSON_ArrayForEach(value, data)
    {
        if (cJSON_IsNumber(value) && (class < 0 || value->valuedouble > best)) {
            best = value->valuedouble;
            class = at;
        }
        at++;
    }
    int bad = !model || !version || class < 0;
    if (bad)
        fprintf(stderr, "the answer is no prediction\n");
    else
        printf("%ld %d %.9g %s@%s\n", line, class, best, model, version);
    fflush(stdout);
    cJSON_Delete(json);
    return bad;
}

/* {"inputs": [{"name": ..., "datatype": "FP32", "shape": [1, count], "data": [...]}]}; NULL without memory. */
static char *request_for(const char *input, const double *values, int count)
{
    cJSON *json = cJSON_CreateObject();
    cJSON *tensor = cJSON_CreateObject();
    const int shape[2] = {1, count};
    cJSON_AddStringToObject(tensor, "name", input);
    cJSON_AddStringToObject(tensor, "datatype", "FP32");
    cJSON_AddItemToObject(tensor, "shape", cJSON_CreateIntArray(shape, 2));
    cJSON_AddItemToObject(tensor, "data", cJSON_CreateDoubleArray(values, count));
    cJSON_AddItemToArray(cJSON_AddArrayToObject(json, "inputs"), tensor);
    char *text = cJSON_PrintUnformatted(json);
    cJSON_Delete(json);
    return text;
}

/* Asks until there is an answer. 0, or 1 if it was given up or stopped. */
static int ask(CURL *curl, const struct settings *settings, long line, const double *values, int count)
{
    char *body = request_for(settings->input, values, count);
    if (!body) {
        fprintf(stderr, "out of memory\n");
        return 1;
    }
    int failed = 1;
    for (long attempt = 1; !stopped; attempt++) {
        struct answer answer = {NULL, 0};
        long status = 0;
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
        curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
        CURLcode code = curl_easy_perform(curl);
        curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
        if (code == CURLE_OK && status == 200) {
            failed = print_prediction(line, answer.text);
            free(answer.text);
            break;
        }
        /* 503: no model yet, or more requests than may wait. The socket is missing until the agent has started. */
        int passes = code != CURLE_OK || status == 408 || status == 429 || status == 503;
        long pause = pause_ms(attempt);
        if (stopped)
            ;
        else if (!passes)
            fprintf(stderr, "refused with %ld: ", status);
        else if (attempt >= settings->attempts)
            fprintf(stderr, "given up after %ld attempts: ", attempt);
        else
            fprintf(stderr, "trying again in %.2f s: ", pause / 1000.0);
        if (!stopped && code != CURLE_OK)
            fprintf(stderr, "no answer from %s: %s\n", settings->socket, curl_easy_strerror(code));
        else if (!stopped)
            print_refusal(&answer);
        free(answer.text);
        if (stopped || !passes || attempt >= settings->attempts)
            break;
        rest(pause);
    }
    free(body);
    return failed;
}

/* The next number of a PGM head, comments skipped; -1 if there is none. */
static int pgm_number(FILE *file)
{
    int number, c;
    while ((c = getc(file)) == '#' || isspace(c))
        while (c == '#' && (c = getc(file)) != '\n' && c != EOF)
            c = '#';
    ungetc(c, file);
    return fscanf(file, "%d", &number) == 1 ? number : -1;
}

/* Reads the image after its "P2" or "P5"; gives the number of values, 0 if it is damaged. */
static int read_pgm(FILE *file, int is_text, double *values)
{
    int width = pgm_number(file), height = pgm_number(file), brightest = pgm_number(file);
    if (width < 1 || height < 1 || width > MAX_VALUES / height || brightest < 1 || brightest > 255)
        return 0;
    if (!is_text)
        getc(file); /* one white space ends the head */
    for (int at = 0; at < width * height; at++) {
        int value = is_text ? pgm_number(file) : getc(file);
        if (value < 0 || value > brightest)
            return 0;
        values[at] = value * BRIGHTEST / brightest;
    }
    return width * height;
}

/* Reads "label,number,number,..."; gives how many numbers, 0 for a line that has none, such as a heading. */
static int read_row(const char *text, double *values)
{
    int count = 0;
    char *end;
    strtod(text, &end);
    if (end == text || *end != ',')
        return 0;
    while (*end == ',' && count < MAX_VALUES) {
        text = end + 1;
        values[count] = strtod(text, &end);
        if (end == text)
            return 0;
        count++;
    }
    return count;
}

/* Asks about everything in the file, once. 0, or 1 if something failed. */
static int once_through(CURL *curl, const struct settings *settings, double *values)
{
    FILE *file = fopen(settings->file, "rb");
    if (!file) {
        fprintf(stderr, "%s: %s\n", settings->file, strerror(errno));
        return 1;
    }
    int failed = 0, first = getc(file), second = getc(file);
    if (first == 'P' && (second == '2' || second == '5')) {
        int count = read_pgm(file, second == '2', values);
        if (count == 0)
            fprintf(stderr, "%s: not a PGM image of at most %d pixels with 1 byte each\n", settings->file, MAX_VALUES);
        failed = count == 0 || ask(curl, settings, 1, values, count);
    } else {
        char *text = NULL;
        size_t size = 0;
        long line = 0;
        rewind(file);
        while (!stopped && !failed && getline(&text, &size, file) >= 0) {
            int count = read_row(text, values);
            if (count > 0)
                failed = ask(curl, settings, ++line, values, count);
        }
        free(text);
    }
    fclose(file);
    return failed;
}

int main(int argc, char **argv)
{
    struct settings settings = {"/run/muster-agent/inference.sock", "digits", "image", NULL, 8, -1};
    int option, failed;
    while ((option = getopt(argc, argv, "s:m:i:a:r:")) != -1) {
        switch (option) {
        case 's': settings.socket = optarg; break;
        case 'm': settings.model = optarg; break;
        case 'i': settings.input = optarg; break;
        case 'a': settings.attempts = strtol(optarg, NULL, 10); break;
        case 'r': settings.interval_s = strtol(optarg, NULL, 10); break;
        default: return 2;
        }
    }
    if (optind + 1 != argc || settings.attempts < 1) {
        fprintf(stderr, "usage: %s [-s SOCKET] [-m MODEL] [-i INPUT] [-a ATTEMPTS] [-r SECONDS] FILE\n", argv[0]);
        return 2;
    }
    settings.file = argv[optind];
    srand((unsigned)time(NULL) ^ (unsigned)getpid());

    /* Without SA_RESTART, so that a signal ends a pause. */
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    char url[512];
    if (snprintf(url, sizeof url, "http://localhost/v2/models/%s/infer", settings.model) >= (int)sizeof url)
        return 2;
    double *values = malloc(MAX_VALUES * sizeof *values);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    CURL *curl = curl_easy_init();
    if (!values || !curl) {
        fprintf(stderr, "out of memory\n");
        return 1;
    }
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, settings.socket);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, TIMEOUT_MS);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, receive);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, watch);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);

    do {
        failed = once_through(curl, &settings, values);
        if (!failed && !stopped && settings.interval_s >= 0)
            rest(settings.interval_s * 1000);
    } while (!failed && !stopped && settings.interval_s >= 0);

    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    curl_global_cleanup();
    free(values);
    return failed && !stopped;
}
