-- Tell what came of a run as JSON, for whoever started it.
function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '\n{"calls": %d, "seconds": %f, "p99": %f, "errors": %d}\n',
        summary.requests, summary.duration / 1e6, latency:percentile(99) / 1e3,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout
    ))
end
