// Loads what the lab's processes load later and ends, so that Node's compile cache holds it (see lab.ts).
await import('../../sidecar/sidecar.ts')
await import('../../server/server.ts')
process.exit(0)
