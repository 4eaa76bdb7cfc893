int sd_version(void);
int sd_max_threads(void);
int sd_level(void);
