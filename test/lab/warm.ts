// Loads all that the lab's processes load and ends, so that Node's compile cache holds it (see lab.ts).
await import('../../sidecar/sidecar.ts')
await import('../../server/server.ts')
await import('../../server/certificate-authority.ts')
await import('../../server/token-verifier/keys.ts')
process.exit(0)
