package artifact

// UnpackAtMost is Unpack for another number of files and folders: as many as
// Unpack takes would keep the disk busy for longer than all other tests.
var UnpackAtMost = unpack
