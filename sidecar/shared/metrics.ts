import Counter from 'prom-client/lib/counter.js'
import Gauge from 'prom-client/lib/gauge.js'
import Histogram from 'prom-client/lib/histogram.js'
import Registry from 'prom-client/lib/registry.js'

export type { Counter, Gauge, Histogram, Registry }

/** Makes the metrics of one process; every name is prefixed `edgemesh_`. */
export class Metrics {
  readonly registry = new Registry()

  counter<L extends string>(name: string, help: string, labelNames: L[] = []): Counter<L> {
    return new Counter({ name: `edgemesh_${name}`, help, labelNames, registers: [this.registry] })
  }

  /** `read` is called at each scrape. */
  gauge(name: string, help: string, read: () => number): Gauge {
    return new Gauge({
      name: `edgemesh_${name}`,
      help,
      registers: [this.registry],
      collect() {
        this.set(read())
      },
    })
  }

  /** Counts at each scrape what `read` lists, by its labels. */
  gauges<L extends string>(
    name: string,
    help: string,
    labelNames: readonly L[],
    read: () => Record<L, string>[],
  ): Gauge {
    return new Gauge({
      name: `edgemesh_${name}`,
      help,
      labelNames: [...labelNames],
      registers: [this.registry],
      collect() {
        this.reset()
        for (const labels of read()) {
          this.labels(...labelNames.map((label) => labels[label])).inc()
        }
      },
    })
  }

  /** Durations in seconds, from 1 ms to 30 s. */
  histogram<L extends string>(name: string, help: string, labelNames: L[] = []): Histogram<L> {
    const buckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
    return new Histogram({ name: `edgemesh_${name}`, help, labelNames, buckets, registers: [this.registry] })
  }
}
