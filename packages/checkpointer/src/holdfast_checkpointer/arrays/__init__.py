"""Array bytes: from devices and hosts into OCDBT and zarr, and back, verified."""
