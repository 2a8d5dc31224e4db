-- SPDX-License-Identifier: GPL-3.0-or-later
-- wrk -c N -t N -s bulk.lua URL -- REQUESTS RATE REPORT
--
-- Each of the N threads has a connection of its own, sends RATE requests a second on it, and compares each answer.
-- REQUESTS has a line for each request: path, status, and a part of the body, between tabs. An answer that is another
-- one, or takes longer than SLOW, is a line in REPORT: when the request was sent and when answered (seconds of the
-- monotonic clock), the number of its line in REQUESTS, the status and the body.

local ffi = require("ffi")
ffi.cdef [[
struct timespec { long seconds; long nanoseconds; };
int clock_gettime(int clock, struct timespec *time);
]]

local CLOCK_MONOTONIC, SLOW = 1, 1.0
local time = ffi.new("struct timespec")
local requests, report, period, began, chosen, sent = {}, nil, nil, nil, nil, nil
local threads = {}
-- Global: done() asks for them.
asked, answered = 0, 0

local function now()
    ffi.C.clock_gettime(CLOCK_MONOTONIC, time)
    return tonumber(time.seconds) + tonumber(time.nanoseconds) / 1e9
end

function setup(thread)
    threads[#threads + 1] = thread
end

function init(args)
    for line in io.lines(args[1]) do
        local path, status, part = line:match("^([^\t]*)\t([^\t]*)\t(.*)$")
        requests[#requests + 1] = {text = wrk.format("GET", path), status = tonumber(status), part = part}
    end
    period = 1 / tonumber(args[2])
    report = assert(io.open(args[3], "a"))
    -- A line is written at once and whole, since other threads append to the same file.
    report:setvbuf("full", 65536)
    math.randomseed(now() * 1e6 % 2 ^ 31)
end

-- Milliseconds until the next request. After a pause of the server the thread catches up.
function delay()
    began = began or now()
    return math.max(0, (began + asked * period - now()) * 1000)
end

function request()
    -- Before the start wrk looks at one request, which it does not send.
    asked = began and asked + 1 or asked
    chosen = math.random(#requests)
    sent = now()
    return requests[chosen].text
end

function response(status, _, body)
    local ended, expected = now(), requests[chosen]
    answered = answered + 1
    if status ~= expected.status or not body:find(expected.part, 1, true) or ended - sent > SLOW then
        local line = body:sub(1, 2000):gsub("%s+", " ")
        report:write(string.format("%.6f %.6f %d %d %s\n", sent, ended, chosen, status, line))
        report:flush()
    end
end

-- A thread may have a request under way when the time is over, which is not lost.
function done(summary)
    local errors, total = summary.errors, {asked = 0, answered = 0}
    for _, thread in ipairs(threads) do
        total.asked = total.asked + thread:get("asked")
        total.answered = total.answered + thread:get("answered")
    end
    io.write(string.format(
        '\n{"asked": %d, "answered": %d, "threads": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d}\n',
        total.asked, total.answered, #threads, errors.connect, errors.read, errors.write, errors.timeout))
end
