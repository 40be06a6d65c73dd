// prom-client's index loads node:cluster and its default metrics: 7 MB of RSS in every pod. Its parts do not.
declare module 'prom-client/lib/registry.js' {
  export { Registry as default } from 'prom-client'
}
declare module 'prom-client/lib/counter.js' {
  export { Counter as default } from 'prom-client'
}
declare module 'prom-client/lib/gauge.js' {
  export { Gauge as default } from 'prom-client'
}
declare module 'prom-client/lib/histogram.js' {
  export { Histogram as default } from 'prom-client'
}

// http2-wrapper's index brings its HTTP/1 and auto-detecting clients along.
declare module 'http2-wrapper/source/agent.js' {
  import { Agent } from 'http2-wrapper'

  const exported: { Agent: typeof Agent }
  export default exported
}
